"""Speech that is not clean: noise, reverberation and other speeds, made on the fly.

Is what a pruned model loses in proportion to what the dense model loses? All models
decode the same disturbed utterances with ESPnet's Speech2Text.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import jiwer
import numpy as np
import torch
import yaml
from common import (
    DECODE,
    RATE,
    arguments,
    parser,
    read_test_set,
    save_experiment,
    start,
    write,
)
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from rich.progress import track
from scipy.signal import fftconvolve, resample_poly

from espnet_l0prune.plugin.experiment import average_of

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(snr: float) -> Change:
    """White noise at a ratio of signal to noise, in dB."""

    def change(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        power = np.square(wave).mean() / 10 ** (snr / 10)
        return wave + rng.normal(0, np.sqrt(power), len(wave))

    return change


def reverberation(seconds: float) -> Change:
    """A room whose echo falls by 60 dB in this time: decaying noise after the sound."""

    def change(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        times = np.arange(int(seconds * RATE)) / RATE
        room = rng.normal(0, 0.1, len(times)) * 10 ** (-3 * times / seconds)
        room[0] = 1.0
        wet = fftconvolve(wave, room)[: len(wave)]
        return wet * np.abs(wave).max() / np.abs(wet).max()

    return change


def speed(percent: int) -> Change:
    """Faster or slower, with the pitch."""
    return lambda wave, rng: resample_poly(wave, 100, percent)


CLEAN = "clean"
CONDITIONS: dict[str, Change] = {
    CLEAN: lambda wave, rng: wave,
    **{f"noise, {snr} dB": noise(snr) for snr in (20, 10, 5)},
    "reverberation, 0.4 s": reverberation(0.4),
    "speed 0.9": speed(90),
    "speed 1.1": speed(110),
}


def every_nth(data: Path, utterances: int | None) -> tuple[list[np.ndarray], list[str]]:
    """So many waveforms and texts of a test set, or all, evenly spread over it."""
    waves, texts = read_test_set(data)
    step = max(len(waves) // (utterances or len(waves)), 1)
    return waves[::step], texts[::step]


def measure(
    experiments: dict[str, Path],
    waves: list[np.ndarray],
    texts: list[str],
    seed: int = 0,
    decode: Path = DECODE,
) -> dict[str, dict[str, float]]:
    """The WER (%) of each experiment, under each condition."""
    search = yaml.safe_load(decode.read_text("utf-8"))
    models = {
        name: Speech2Text(exp / "config.yaml", exp / average_of(exp), **search)
        for name, exp in experiments.items()
    }
    rates = {}
    for name, change in CONDITIONS.items():
        heard = {model: [] for model in models}
        for i, wave in enumerate(track(waves, name)):
            changed = change(wave, np.random.default_rng([seed, i])).astype("float32")
            for model, speech2text in models.items():
                heard[model].append(speech2text(changed)[0][0])
        rates[name] = {m: 100 * jiwer.wer(texts, heard[m]) for m in models}
    return rates


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument(
        "--models", nargs="+", metavar="NAME=EXP", help="experiments to decode with"
    )
    options.add_argument("--data", type=Path, help="folder with wav.scp and text")
    options.add_argument("--utterances", type=int, help="decode every n-th, so many")
    args = options.parse_args(argv)
    start(args)
    if not args.quick and None in (args.models, args.data):
        raise SystemExit("expected --models and --data, or --quick")
    with tempfile.TemporaryDirectory() as folder:
        if args.quick:
            conf = {"encoder_conf": {"num_blocks": 1}, "decoder_conf": {"num_blocks": 1}}
            small = arguments("librispeech100", **conf)
            save_experiment(Path(folder) / "exp", small, ASRTask.build_model(small))
            named = {"random": Path(folder) / "exp"}
            waves, texts = [0.1 * np.random.default_rng(0).normal(size=RATE)], ["noise"]
        else:
            pairs = (model.split("=", 1) for model in args.models)
            named = {name: Path(experiment) for name, experiment in pairs}
            waves, texts = every_nth(args.data, args.utterances)
        torch.set_num_threads(1)
        found = measure(named, waves, texts, args.seed)
    rows = [
        {"condition": name, **{f"{m} WER (%)": rate for m, rate in rates.items()}}
        for name, rates in found.items()
    ]
    write(args, rows)


if __name__ == "__main__":
    main()

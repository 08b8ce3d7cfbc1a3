"""Speech that is not clean: noise, reverberation and other speeds, made on the fly.

Is what a pruned model loses in proportion to what the dense model loses? All models
decode the same disturbed utterances with ESPnet's Speech2Text.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import jiwer
import numpy as np
import torch
import yaml
from common import DECODE, RATE, read_test_set, write
from espnet2.bin.asr_inference import Speech2Text
from low_rank import register
from rich.progress import track
from scipy.signal import fftconvolve, resample_poly

from espnet_l0prune.plugin.experiment import average_of

# substituted, deleted and inserted words of each utterance, and letters
Errors = dict[str, list[int]]
UNITS = {"errors": jiwer.process_words, "letter errors": jiwer.process_characters}
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

EVERY = 3  # n-th utterance of a test set stands for all where speech is disturbed


def step_of(condition: str) -> int:
    """How far apart the utterances are that are heard under a condition."""
    return 1 if condition == CLEAN else EVERY


def load(experiment: Path, decode: Path = DECODE) -> Speech2Text:
    """An experiment's averaged model, with the options of a search."""
    register()  # it may be a factored one
    search = yaml.safe_load(decode.read_text("utf-8"))
    checkpoint = experiment / average_of(experiment)
    return Speech2Text(experiment / "config.yaml", checkpoint, **search)


def best_of(found: tuple | list) -> str:
    """The text of the best hypothesis that Speech2Text has found; with intermediate CTC,
    it returns what that recognizes, too."""
    hypotheses = found[0] if isinstance(found, tuple) else found
    return hypotheses[0][0]


def count_errors(
    models: dict[str, Speech2Text],
    waves: list[np.ndarray],
    texts: list[str],
    condition: str,
    seed: int = 0,
) -> dict[str, Errors]:
    """The errors of each model, by the names in `UNITS`. All models hear an utterance
    disturbed in the same way."""
    errors: dict[str, Errors] = {model: {u: [] for u in UNITS} for model in models}
    for i, (wave, text) in enumerate(track([*zip(waves, texts, strict=True)], condition)):
        changed = CONDITIONS[condition](wave, np.random.default_rng([seed, i]))
        for model, speech2text in models.items():
            heard = best_of(speech2text(changed.astype("float32")))
            for unit, process in UNITS.items():
                found = process(text, heard)
                edits = found.substitutions + found.deletions + found.insertions
                errors[model][unit].append(edits)
    return errors


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="NAME=EXP",
        help="experiments to decode with",
    )
    options.add_argument(
        "--data", type=Path, required=True, help="folder with wav.scp and text"
    )
    options.add_argument("--utterances", type=int, help="decode every n-th, so many")
    options.add_argument("--seed", type=int, default=0, help="of the noise")
    options.add_argument("--json", type=Path, help="write the table here too")
    args = options.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    pairs = (model.split("=", 1) for model in args.models)
    models = {name: load(Path(experiment)) for name, experiment in pairs}
    waves, texts = read_test_set(args.data)
    step = max(len(waves) // (args.utterances or len(waves)), 1)
    waves, texts = waves[::step], texts[::step]
    sizes = {
        "WER (%)": ("errors", sum(len(text.split()) for text in texts)),
        "CER (%)": ("letter errors", sum(len(text) for text in texts)),
    }
    rows = []
    for condition in CONDITIONS:
        errors = count_errors(models, waves, texts, condition, args.seed)
        rates = {
            f"{model} {rate}": 100 * sum(found[unit]) / size
            for model, found in errors.items()
            for rate, (unit, size) in sizes.items()
        }
        rows.append({"condition": condition, **rates})
    write(args, rows)


if __name__ == "__main__":
    main()

"""Streaming: word error rate and time per block of a dense and a pruned model.

Both decode the same test set with ESPnet's Speech2TextStreaming on one thread, fed with
`--chunk` seconds of audio at a time, and with Speech2Text, which has heard all of an
utterance before it begins. The encoders take turns at each block of frames. A block's
time is that from its last frame to the encoder's answer; whoever listens waits for it and
for `look_ahead` frames.
"""

import statistics
import tempfile
import time
from pathlib import Path

import jiwer
import torch
from common import (
    RATE,
    arguments,
    pair_parser,
    read_test_set,
    save_experiment,
    start_pair,
    write,
)
from espnet2.bin.asr_inference import Speech2Text
from espnet2.bin.asr_inference_streaming import Speech2TextStreaming
from espnet2.tasks.asr import ASRTask
from rich.progress import track
from torch import Tensor, nn

from espnet_l0prune.plugin.experiment import average_of

TIMED = 20  # utterances, for the time of a block
BLOCKS = {"block_size": 40, "hop_size": 16, "look_ahead": 16}
SMALL = {"output_size": 64, "attention_heads": 4, "linear_units": 64, "num_blocks": 1}


def said(streaming: Speech2TextStreaming, wave: Tensor, samples: int) -> str:
    """The text of an utterance that is heard so many samples at a time."""
    parts = wave.split(samples)
    for part in parts[:-1]:
        streaming(part, is_final=False)
    return streaming(parts[-1], is_final=True)[0][0]


@torch.no_grad()
def block_times(models: dict[str, nn.Module], waves: list[Tensor]) -> dict[str, list]:
    """Seconds of each encoder's call that answered with a block of frames, by name."""
    times: dict[str, list[float]] = {name: [] for name in models}
    names = [*models]
    for wave in track(waves, "blocks"):
        states = dict.fromkeys(names)
        first = models[names[0]]
        feats, _ = first._extract_feats(wave[None], torch.tensor([len(wave)]))
        if first.normalize is not None:
            feats, _ = first.normalize(feats, torch.tensor([feats.size(1)]))
        step = first.encoder.hop_size * first.encoder.subsample
        parts = feats.split(step, 1)
        for i, part in enumerate(parts):
            names = [*names[1:], names[0]]
            for name in names:
                length, final = torch.tensor([part.size(1)]), i == len(parts) - 1
                begin = time.perf_counter()
                out, _, states[name] = models[name].encoder(
                    part, length, states[name], is_final=final, infer_mode=True
                )
                taken = time.perf_counter() - begin
                if out.size(1) and not final:
                    times[name].append(taken)
    return times


def measure(
    files: dict[str, tuple[Path, Path]],
    options: dict,
    waves: list[Tensor],
    texts: list[str],
    samples: int,
) -> list[dict]:
    """One row for each model; see the head of this file."""
    whole = {name: Speech2Text(*file, **options) for name, file in files.items()}
    parts = {name: Speech2TextStreaming(*file, **options) for name, file in files.items()}
    spoken: dict[str, list[str]] = {name: [] for name in files}
    heard: dict[str, list[str]] = {name: [] for name in files}
    for wave in track(waves, "decoding"):
        for name in files:
            spoken[name].append(whole[name](wave)[0][0])
            heard[name].append(said(parts[name], wave, samples))
    models = {name: made.asr_model for name, made in parts.items()}
    times = block_times(models, waves[:TIMED])
    rows = []
    for name, model in models.items():
        taken = 1000 * statistics.median(times[name])
        rows.append(
            {
                "model": name,
                "encoder (M)": sum(p.numel() for p in model.encoder.parameters()) / 1e6,
                "WER, streaming (%)": 100 * jiwer.wer(texts, heard[name]),
                "WER, whole utterances (%)": 100 * jiwer.wer(texts, spoken[name]),
                "a block (ms)": taken,
                "slowest tenth (ms)": 1000 * statistics.quantiles(times[name], n=10)[-1],
                "time": taken / (1000 * statistics.median(times["dense"])),
            }
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    options = pair_parser(__doc__)
    options.add_argument("--chunk", type=float, default=0.32, help="seconds at a time")
    args = options.parse_args(argv)
    decode = start_pair(args)
    with tempfile.TemporaryDirectory() as folder:
        experiments = {"dense": args.dense, "cut": args.pruned}
        if args.quick:
            small = arguments("librispeech100", decoder_conf={"num_blocks": 1})
            small.encoder = "contextual_block_transformer"
            small.encoder_conf = {**SMALL, **BLOCKS}
            experiments = {"dense": Path(folder) / "exp"}
            save_experiment(experiments["dense"], small, ASRTask.build_model(small))
            waves, texts = [0.1 * torch.randn(4 * RATE)], ["noise"]
            decode = {"beam_size": 1, "ctc_weight": 1.0}
        else:
            found, texts = read_test_set(args.data)
            waves = [torch.from_numpy(wave) for wave in found]
        files = {
            name: (folder / "config.yaml", folder / average_of(folder))
            for name, folder in experiments.items()
        }
        rows = measure(files, decode, waves, texts, int(args.chunk * RATE))
        write(args, rows)


if __name__ == "__main__":
    main()

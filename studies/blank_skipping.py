"""Blank-triggered skipping of layers (Hou et al. 2023, arXiv 2401.02046), a baseline in
time for CTC: no weight is removed, but most frames leave the encoder early.

Training had an intermediate CTC after block k. In recognition, frames whose blank is more
probable there than a threshold skip the blocks that follow: what the intermediate CTC
reads of them is their output. The other frames go on side by side, as if there had been
no frames between them, and are put back into their places in the end. This is the
skipping alone, without the paper's factorized CTC, its distillation and its extension of
spikes. Errors are those of ESPnet's Speech2Text; the time is the encoder's, on one
thread.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import RATE, ROOT, read_test_set, write
from conditions import CLEAN, UNITS, count_errors, load
from rich.progress import track
from torch import Tensor, nn

from espnet_l0prune.deploy.decoding import time_decoding


class BlankSkipping:
    """Hooks on a model's encoder, which then skips blocks, for one utterance at a time.

    Args:
        model: ESPnet's, with CTC
        block: frames may skip all blocks behind it, which are counted from 1
        threshold: probability of blank beyond which a frame skips

    Attributes:
        frames, skipped: number of frames so far, and of those that skipped

    Raises:
        ValueError: a block whose outputs no CTC has learnt to read
    """

    def __init__(self, model: nn.Module, block: int, threshold: float):
        encoder, weight = model.encoder, model.interctc_weight
        learnt = getattr(encoder, "interctc_layer_idx", [])
        if block not in learnt or not weight:
            raise ValueError(
                f"--block is {block}, but the model has intermediate CTC after blocks "
                f"{learnt} with interctc_weight: {weight}; expected one of them, and a "
                "weight above 0, as the CTC has learnt to read no other block"
            )
        self.model, self.threshold = model, threshold
        self.frames = self.skipped = 0
        self._early: Tensor | None = None  # (1, frames, size); None where all go on
        self._late = torch.tensor(())  # whether each frame goes on, (frames,)
        encoder.encoders[block - 1].register_forward_hook(self._leave)
        encoder.register_forward_hook(self._join)

    def _leave(self, layer: nn.Module, args: tuple, output: tuple) -> tuple | None:
        stream, masks = output
        x, *positions = stream if isinstance(stream, tuple) else (stream,)
        encoder, (n, size) = self.model.encoder, x.shape[:2]
        if n > 1:
            raise ValueError(f"the batch has {n} utterances; expected one")
        # an E-Branchformer's intermediate CTC reads what no norm has changed
        normed = getattr(encoder, "normalize_before", False)
        early = encoder.after_norm(x) if normed else x
        blank = self.model.ctc.softmax(early)[0, :, self.model.blank_id]
        self._late = blank <= self.threshold
        left = int(self._late.sum())
        self.frames, self.skipped = self.frames + size, self.skipped + size - left
        self._early = None if left == size else early
        if self._early is None:
            return None
        # a block takes one frame at least; what becomes of it is not used
        on = self._late.nonzero()[:, 0] if left else torch.zeros(1, dtype=torch.long)
        short = x[:, on], *(_middle(p, size, len(on)) for p in positions)
        return short if positions else short[0], masks[..., on]

    def _join(self, encoder: nn.Module, args: tuple, output: tuple) -> tuple | None:
        if self._early is None:
            return None
        out, lengths, *rest = output
        late, *between = out if isinstance(out, tuple) else (out,)
        whole = self._early.clone()
        if self._late.any():
            whole[:, self._late] = late
        out = (whole, *between) if between else whole
        return out, torch.full_like(lengths, whole.size(1)), *rest


def _middle(positions: Tensor, size: int, left: int) -> Tensor:
    """The positions of `left` frames among those of `size`, (1, size, d), or among the
    distances of `size` frames, (1, 2 size - 1, d), whose middle is that of a frame to
    itself."""
    if positions.size(1) == size:
        return positions[:, :left]
    return positions[:, size - left : size + left - 1]


def decode(
    experiment: Path,
    block: int,
    thresholds: Sequence[float],
    data: Path,
    search: Path,
    utterances: int | None = None,
    rounds: int = 3,
) -> list[dict]:
    """Decode an experiment with and without skipping, and return a row for each.

    Args:
        experiment: a folder of ESPnet's
        block, thresholds: see `BlankSkipping`
        data: folder with wav.scp and text
        search: options of Speech2Text, in YAML
        utterances: decode every n-th, so many
        rounds: each time is the median of so many, after one that is left out

    Raises:
        ValueError: see `BlankSkipping`
    """
    recognizers = {"no skipping": load(experiment, search)}
    hooks = {}
    for threshold in thresholds:
        name = f"blank > {threshold:g}"
        recognizers[name] = load(experiment, search)
        hooks[name] = BlankSkipping(recognizers[name].asr_model, block, threshold)
    waves, texts = read_test_set(data)
    step = max(len(waves) // (utterances or len(waves)), 1)
    waves, texts = waves[::step], texts[::step]
    errors = count_errors(recognizers, waves, texts, CLEAN)
    shares = {name: hook.skipped / hook.frames for name, hook in hooks.items()}
    audio = [torch.from_numpy(wave) for wave in waves]
    times = time_decoding(recognizers, audio, rounds, lambda todo: track(todo, "times"))
    seconds = sum(map(len, waves)) / RATE
    sizes = sum(len(text.split()) for text in texts), sum(map(len, texts))
    first = times["no skipping"].encoder
    rows = []
    for name, found in errors.items():
        row: dict[str, Any] = {"frames that skip": name}
        row["share of frames (%)"] = 100 * shares.get(name, 0.0)
        for rate, unit, size in zip(("WER (%)", "CER (%)"), UNITS, sizes, strict=True):
            row[rate] = 100 * sum(found[unit]) / size
        row["encoder, RTF"] = times[name].encoder / seconds
        row["encoder, of the whole (%)"] = 100 * times[name].encoder / first
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, required=True, help="an experiment")
    options.add_argument("--data", type=Path, required=True, help="with wav.scp and text")
    options.add_argument("--block", type=int, required=True, help="has intermediate CTC")
    options.add_argument(
        "--thresholds", nargs="+", type=float, default=[0.9, 0.99, 0.999]
    )
    options.add_argument("--decode", type=Path, default=ROOT / "studies/ctc.yaml")
    options.add_argument("--utterances", type=int, help="decode every n-th, so many")
    options.add_argument("--rounds", type=int, default=3, help="turns of each candidate")
    options.add_argument("--json", type=Path, help="write the table here too")
    args = options.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    how = args.data, args.decode, args.utterances, args.rounds
    write(args, decode(args.model, args.block, args.thresholds, *how))


if __name__ == "__main__":
    main()

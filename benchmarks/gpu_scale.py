"""How large the parts of `gpu.py` are, and where their rows go."""

import argparse
import sys
import time
from dataclasses import dataclass

import torch
from common import QUICK, SIZES, keep
from step_cost import PRECISIONS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Scale:
    """How large everything is.

    Attributes:
        sizes: of `common.SIZES`, or `common.QUICK`
        precisions: of `step_cost.PRECISIONS`
        seconds: of an utterance of a training step
        utterances: in a training step; None for as many as `BINS` has
        warmup: steps that are not timed, in which the scale of the loss is found
        batches: of the encoders, utterances
        encoded: seconds of such an utterance
        speakers: of FSDD, at most
        train: utterances of each to train on
        test: utterances that are decoded, at most
        training: options of the dense training and of the pruning
        epochs: of the dense training, and of the pruning
    """

    sizes: tuple[str, ...]
    precisions: tuple[str, ...]
    seconds: float
    utterances: int | None
    warmup: int
    batches: tuple[int, ...]
    encoded: float
    speakers: int
    train: int
    test: int
    training: dict
    epochs: tuple[int, int]


FULL = Scale(
    sizes=tuple(SIZES),
    precisions=tuple(PRECISIONS),
    seconds=15.0,
    utterances=None,
    warmup=3,
    batches=(1, 16),
    encoded=10.0,
    speakers=6,
    train=200,
    test=60,
    training={
        "use_matplotlib": False,
        "num_workers": 4,
        "scheduler_conf": {"warmup_steps": 200},
    },
    epochs=(12, 10),
)
TINY = Scale(
    sizes=(QUICK,),
    precisions=("float32", "bfloat16"),
    seconds=0.5,
    utterances=1,
    warmup=0,
    batches=(1,),
    encoded=0.5,
    speakers=1,
    train=6,
    test=2,
    training={
        "use_matplotlib": False,
        "num_workers": 0,
        "batch_bins": 200_000,
        "encoder_conf": {"num_blocks": 1, "output_size": 16, "linear_units": 32},
        "decoder_conf": {"num_blocks": 1, "linear_units": 32},
    },
    epochs=(1, 4),
)


class Rows:
    """What was found so far, on disk as soon as it is.

    Args:
        options: say where, and how long it may take
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.found = options, []
        self.end = time.monotonic() + 60 * options.minutes

    def add(self, part: str, **columns: object) -> None:
        row = {"part": part, **columns}
        self.found.append(row)
        keep(self.options, self.found)
        print(", ".join(f"{k} {v}" for k, v in row.items()), file=sys.stderr, flush=True)

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

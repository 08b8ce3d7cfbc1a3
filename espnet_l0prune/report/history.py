"""What ESPnet's reporter noted of a training, from its checkpoint alone."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from espnet_l0prune.plugin.trainer import choose_checkpoint


@dataclass(frozen=True)
class Epoch:
    """Means over an epoch of training, and over its validation, by name.

    Attributes:
        update: made when the epoch ends
        seconds: of training and validation
    """

    update: int
    seconds: float
    train: dict[str, float]
    valid: dict[str, float]


@contextmanager
def _figures_are_safe() -> Iterator[None]:
    """Let torch read times and NumPy's numbers, beside tensors: no code runs for them."""
    number = np.float64(0)
    types = [datetime.timedelta, number.__reduce__()[0], np.dtype, type(number.dtype)]
    with torch.serialization.safe_globals(types):
        yield


def read_history(experiment: Path, accum_grad: int = 1) -> list[Epoch]:
    """The epochs so far, the first one first; none before the first has ended.

    Args:
        experiment: the folder of a training, which may still run
        accum_grad: batches of an update

    Raises:
        ValueError: a checkpoint that holds no training
    """
    checkpoint = experiment / "checkpoint.pth"
    if not checkpoint.exists():
        return []
    whole = choose_checkpoint(checkpoint)  # while it is written: that of the epoch before
    if whole is None:
        return []
    try:
        with _figures_are_safe():
            saved = torch.load(whole, map_location="cpu", weights_only=True, mmap=True)
        stats = saved["reporter"]["stats"]
    except Exception as e:  # torch.load raises almost anything for a damaged file
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(
            f"{whole} cannot be read: {reason} Expected the checkpoint of an ESPnet "
            "training"
        ) from e
    epochs = []
    for _, parts in sorted(stats.items()):
        figures = [
            {k: float(v) for k, v in parts[part].items() if isinstance(v, (int, float))}
            for part in ("train", "valid")
        ]
        times = [parts[part]["time"].total_seconds() for part in ("train", "valid")]
        batches = parts["train"]["total_count"]
        epochs.append(Epoch(batches // accum_grad, sum(times), *figures))
    return epochs

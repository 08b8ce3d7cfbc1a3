"""What ESPnet's reporter noted of a training, from its checkpoint alone."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from espnet_l0prune.core.files import is_whole
from espnet_l0prune.plugin.trainer import PREVIOUS


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
    scalar = number.__reduce__()[0]
    types = [datetime.timedelta, scalar, np.dtype, type(number.dtype)]
    types.append((scalar, "numpy.core.multiarray.scalar"))  # of NumPy 1
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
    files = (experiment / "checkpoint.pth", experiment / PREVIOUS)
    # one that is being written is not whole: L0Trainer keeps that of the epoch before
    whole = next((file for file in files if is_whole(file)), None)
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
    epochs, batches, updates = [], 0, 0
    for _, parts in sorted(stats.items()):
        figures = [
            {k: float(v) for k, v in part.items() if isinstance(v, (int, float))}
            for part in (parts["train"], parts.get("valid", {}))
        ]
        times = [
            part["time"].total_seconds() for part in parts.values() if "time" in part
        ]
        # what accum_grad leaves of an epoch makes no update
        updates += (parts["train"]["total_count"] - batches) // accum_grad
        batches = parts["train"]["total_count"]
        epochs.append(Epoch(updates, sum(times), *figures))
    return epochs

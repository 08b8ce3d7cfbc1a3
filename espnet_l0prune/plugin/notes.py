"""These are the figures of a training in ESPnet3 that `report` shows.

ESPnet2's reporter keeps the means of each epoch in its checkpoints. Lightning keeps what
was logged last.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

Metrics = Mapping[str, Tensor]  # what Lightning has logged last, such as train/loss


class Notes:
    """`Notes` hold the figures of a training's epochs, and of the present one so far.

    Attributes:
        epochs: plain data of each epoch that has ended: its `number`, from 1 on; the
            `update` in which it ended; its time in `seconds`; and means of `train` and
            `valid` by name
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, Any]] = []
        self.begin()

    def begin(self) -> None:
        """Begin an epoch."""
        self._start, self._batches = time.perf_counter(), 0
        self._sums: Counter[str] = Counter()
        self._valid: dict[str, float] = {}

    def trained(self, metrics: Metrics) -> None:
        """Add the figures of a batch."""
        self._batches += 1
        self._sums.update(_of("train/", metrics))

    def validated(self, metrics: Metrics) -> None:
        """Take the figures of a validation in this epoch."""
        self._valid = _of("valid/", metrics)

    def end(self, number: int, update: int, standing: Mapping[str, float]) -> None:
        """End the epoch.

        Args:
            number: the epoch's number
            update: number of updates made
            standing: how far a pruning is, where no validation has told
        """
        self.epochs.append(
            {
                "number": number,
                "update": update,
                "seconds": time.perf_counter() - self._start,
                "train": {k: total / self._batches for k, total in self._sums.items()},
                "valid": {**self._valid, **standing},
            }
        )


def _of(part: str, metrics: Metrics) -> dict[str, float]:
    return {
        k.removeprefix(part): float(x) for k, x in metrics.items() if k.startswith(part)
    }

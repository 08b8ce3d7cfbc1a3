"""A learning rate falls to 0 at the end of a run, however long that is."""

from collections.abc import Sequence

import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler, AbsScheduler
from torch.optim.lr_scheduler import LRScheduler

from espnet_l0prune.core.ranges import check


class LinearDecayLR(LRScheduler, AbsBatchStepScheduler):
    """This is `scheduler: l0_lineardecaylr`: the learning rate rises linearly to the
    optimizer's `lr`, and then falls linearly to 0 at the end of the run.

    The trainer of `model: l0_distill` says how long the run is. Gates have a rate of
    their own, which no scheduler changes.

    Args:
        optimizer: has the peak of each learning rate
        warmup_ratio: share of the run in which the rate rises

    Attributes:
        total_steps: number of updates in the whole run; None until it is known

    Raises:
        ValueError: a warm-up out of its range
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup_ratio: float = 0.1):
        check("scheduler_conf", {"warmup_ratio": warmup_ratio})
        self.warmup_ratio = warmup_ratio
        self.total_steps: int | None = None
        super().__init__(optimizer)

    def fit_(self, total_steps: int) -> None:
        """Take the number of updates in the whole run, and set the rate anew."""
        self.total_steps = total_steps
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = self.get_lr()

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Return the learning rate of each group for the next update.

        Raises:
            ValueError: a trainer that has not said how long the run is
        """
        made, total = self.last_epoch, self.total_steps
        factor = 0.0  # until the trainer has said how long the run is
        if total is not None:
            warmup = self.warmup_ratio * total
            left = max(total - made, 0)
            factor = min((made + 1) / (warmup + 1), left / max(total - warmup, 1), 1.0)
        elif made:
            raise ValueError(
                "scheduler: l0_lineardecaylr needs the length of the run, which the "
                "trainer of model: l0_distill tells it; expected that model, or another "
                "scheduler"
            )
        return [factor * float(rate) for rate in self.base_lrs]


def fit_decays_(
    schedulers: Sequence[AbsScheduler | None], updates: int | None, epochs: int
) -> None:
    """Tell the schedulers that need it how long the run is, before each epoch.

    Args:
        schedulers: those of the run's optimizers
        updates: number of updates in this epoch; None where it is not known beforehand
        epochs: number of epochs that are left, this one included

    Raises:
        ValueError: an epoch of unknown length
    """
    for scheduler in schedulers:
        if isinstance(scheduler, LinearDecayLR):
            if updates is None:
                raise ValueError(
                    "scheduler is l0_lineardecaylr, but the iterator (multiple_iterator, "
                    "chunk) has epochs of unknown length; expected another scheduler"
                )
            scheduler.fit_(scheduler.last_epoch + updates * epochs)

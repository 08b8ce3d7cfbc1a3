"""The layers' loss gets its weight from the sizes of the losses when training starts.

A loss of 20 an utterance and one of 0.5 ask for different weights beside them, and hidden
states of a variance of 1 and of 100, too. What is measured depends on the data, so that
it is known in training only.
"""

import logging

import torch
from torch import Tensor

BATCHES = 20  # that are measured
SHARE = 0.5  # of the task's loss, that states cost which are lost altogether
NAME = "layer_weight_measured"


class LayerWeight:
    """A `LayerWeight` is half of the task's loss over the size of the layers' loss.

    Both are means over the first batches of a training, while hardly a unit is closed.
    The size of the layers' loss is what a student would have whose hidden states are all
    0. So the weight has no unit: states that are lost altogether cost half as much as the
    task did, whatever the losses' scales are.

    The sums are in the first parameter group of the optimizer, so that they are saved and
    resumed with it. All processes of a distributed training have the same ones.

    Args:
        optimizer: the training's
        network: `encoder` or `frontend`, whose layers are meant
    """

    def __init__(self, optimizer: torch.optim.Optimizer, network: str = "encoder"):
        self.optimizer, self.network = optimizer, network

    def is_fixed(self) -> bool:
        """Return whether there have been enough batches."""
        return self._sums["batches"] >= BATCHES

    def update_(self, task: Tensor, size: Tensor) -> None:
        """Take another batch into account.

        Args:
            task: the task's loss, a scalar; the batch is left out if it is not finite
            size: the size of the layers' loss, a scalar
        """
        sums = self._sums
        pair = (loss.detach().double().reshape(()) for loss in (task, size))
        found = torch.stack([*pair])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(found)
            found /= torch.distributed.get_world_size()
        if not bool(found.isfinite().all()):
            return
        for name, value in zip(("task", "size"), found.tolist(), strict=True):
            sums[name] += value
        sums["batches"] += 1
        if self.is_fixed():
            task, size = (sums[name] / BATCHES for name in ("task", "size"))
            logging.info(
                f"layer_weight is {self.value():.3g} in the {self.network}: in the first "
                f"{BATCHES} batches, the task's loss is {task:.3g}, and that of layers "
                f"whose states are lost {size:.3g}; they count {SHARE:g} times as much"
            )

    def value(self) -> float:
        """Return the weight, which is 0 before the first batch."""
        sums = self._sums
        return SHARE * sums["task"] / sums["size"] if sums["size"] else 0.0

    @property
    def _sums(self) -> dict[str, float]:
        """Return number of batches and both sums; a resumed optimizer has others."""
        none = {"batches": 0, "task": 0.0, "size": 0.0}
        name = NAME if self.network == "encoder" else f"{NAME}_{self.network}"
        return self.optimizer.param_groups[0].setdefault(name, none)

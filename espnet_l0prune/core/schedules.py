"""Schedules differ in the shape of their ramp, along which the target sparsities rise."""

import math

from espnet_l0prune.core.phases import WHERE, AbsSparsityScheduler
from espnet_l0prune.core.ranges import check


class LinearSparsityScheduler(AbsSparsityScheduler):
    """The target rises linearly, s(t) = start + (target - start) t / ramp_steps, as in
    Jiang et al. 2023, arXiv 2305.19549."""

    def ramp(self, done: float) -> float:
        return done


class ConstantSparsityScheduler(AbsSparsityScheduler):
    """The whole target stands at once, from the end of the warm-up on."""

    def ramp(self, done: float) -> float:
        return 1.0


class CubicSparsityScheduler(AbsSparsityScheduler):
    """The target has risen by 1 - (1 - done)^3 of the way (Zhu and Gupta 2017).

    It rises fast at first.
    """

    def ramp(self, done: float) -> float:
        return 1 - (1 - done) ** 3


class CosineSparsityScheduler(AbsSparsityScheduler):
    """The target has risen by (1 - cos(pi done)) / 2 of the way: slowly at both ends."""

    def ramp(self, done: float) -> float:
        return (1 - math.cos(math.pi * done)) / 2


class ExponentialSparsityScheduler(LinearSparsityScheduler):
    """The density falls by the same factor in every update: s = 1 - (1 - start) ((1 -
    target) / (1 - start))^done."""

    def sparsity(self, target: float, done: float) -> float:
        return 1 - (1 - self.start) * ((1 - target) / (1 - self.start)) ** done


class StaircaseSparsityScheduler(AbsSparsityScheduler):
    """The target rises in equal steps, of which the first is taken at once.

    Args:
        stairs: number of steps; the target stands still on each
        others: see `AbsSparsityScheduler`

    Raises:
        ValueError: an option out of its range
    """

    def __init__(
        self,
        start: float = 0.0,
        warmup_steps: float = 1000,
        ramp_steps: float = 10000,
        hold_steps: float = 10000,
        in_epochs: bool = False,
        milestones: list[float] | None = None,
        stairs: int = 5,
        gate_start: str | None = None,
    ):
        check(WHERE, {"stairs": stairs})
        self.stairs = stairs
        lengths = warmup_steps, ramp_steps, hold_steps
        super().__init__(start, *lengths, in_epochs, milestones, gate_start)

    @property
    def settings(self) -> dict[str, object]:
        return {**super().settings, "stairs": self.stairs}

    def ramp(self, done: float) -> float:
        return (math.floor(done * self.stairs) + 1) / self.stairs


SCHEDULERS = {
    "constant": ConstantSparsityScheduler,
    "linear": LinearSparsityScheduler,
    "cubic": CubicSparsityScheduler,
    "cosine": CosineSparsityScheduler,
    "exponential": ExponentialSparsityScheduler,
    "staircase": StaircaseSparsityScheduler,
}

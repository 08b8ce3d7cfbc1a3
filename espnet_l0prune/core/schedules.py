"""How the target sparsity moves: pure functions of the number of updates made.

warmup   gates bypassed: exactly the dense network
ramp     the target rises
hold     the target stands, the gates settle
frozen   the gates are 0 or 1, the weights go on training
"""

from abc import ABC, abstractmethod


class AbsSparsityScheduler(ABC):
    """Phases of fixed length and a target in each.

    Args:
        target: sparsity to reach, in (0, 1): the share of the parameters to remove
        start: sparsity at which the ramp begins
        warmup_steps, ramp_steps, hold_steps: lengths of the phases, in updates
    """

    def __init__(
        self,
        target: float = 0.5,
        start: float = 0.0,
        warmup_steps: int = 1000,
        ramp_steps: int = 10000,
        hold_steps: int = 10000,
    ):
        if not 0 < target < 1:
            raise ValueError(
                f"sparsity_scheduler_conf: target is {target}; expected a number in "
                "(0, 1), the share of the parameters to remove"
            )
        if not 0 <= start <= target:
            raise ValueError(
                f"sparsity_scheduler_conf: start is {start}; "
                f"expected a number in [0, target] = [0, {target}]"
            )
        lengths = {"warmup_steps": warmup_steps, "ramp_steps": ramp_steps}
        for name, length in {**lengths, "hold_steps": hold_steps}.items():
            if length != int(length) or length < 0:
                raise ValueError(
                    f"sparsity_scheduler_conf: {name} is {length}; "
                    "expected a whole number of updates, 0 or more"
                )
        if ramp_steps + hold_steps == 0:
            raise ValueError(
                "sparsity_scheduler_conf: ramp_steps and hold_steps are both 0; "
                "expected some updates in which the gates can train"
            )
        self.goal, self.start = target, start
        self.ramp_begins = warmup_steps
        self.hold_begins = warmup_steps + ramp_steps
        self.frozen_begins = warmup_steps + ramp_steps + hold_steps

    def phase(self, update: int) -> str:
        """The phase after `update` updates."""
        if update < self.ramp_begins:
            return "warmup"
        if update < self.hold_begins:
            return "ramp"
        return "hold" if update < self.frozen_begins else "frozen"

    def target(self, update: int) -> float:
        """The target sparsity after `update` updates."""
        if update < self.ramp_begins:
            return 0.0
        if update >= self.hold_begins:
            return self.goal
        done = (update - self.ramp_begins) / (self.hold_begins - self.ramp_begins)
        return self.start + (self.goal - self.start) * self.ramp(done)

    @abstractmethod
    def ramp(self, done: float) -> float:
        """The shape of the ramp: from `done` in [0, 1) to the share of the way up."""


class LinearSparsityScheduler(AbsSparsityScheduler):
    """target(t) = start + (goal - start) t / ramp_steps, as in Jiang et al. 2023."""

    def ramp(self, done: float) -> float:
        return done

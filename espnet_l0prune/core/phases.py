"""A schedule says how the target sparsities rise, as a function of the updates made.

It has four phases::

    warmup   the gates are bypassed, and the network is exactly the dense one
    ramp     the targets rise
    hold     the targets stand, and the gates settle
    frozen   the gates are fixed to 0 or 1, and the weights go on training

With milestones, a hold interrupts the ramp where the targets reach each of them; ramp and
hold alternate then.
"""

import bisect
from abc import ABC, abstractmethod
from collections.abc import Mapping

from espnet_l0prune.core.ranges import check

WHERE = "sparsity_scheduler_conf"
LENGTHS = "warmup_steps", "ramp_steps", "hold_steps"
GATE_STARTS = ("taylor",)  # see `gate_start`
MEASURED = 20  # updates of a warm-up, at least, that measures importances
ROUNDING = 1e-9  # of a sparsity, when a ramp has reached it
DIGITS = 12  # of a sparsity that is computed


class AbsSparsityScheduler(ABC):
    """An `AbsSparsityScheduler` has phases of fixed length and a ramp of some shape.

    Args:
        start: sparsity at which the ramp begins
        warmup_steps: length of the warm-up, in updates, with the network still dense
        ramp_steps: length of the ramp, in updates, in which the targets rise
        hold_steps: length of the hold, in updates, in which the gates settle
        in_epochs: whether the lengths are in epochs instead; they need not be whole then
        milestones: rising sparsities, the last of which is the target, or the largest of
            several, to which the others are in proportion; the ramp pauses at each for
            `hold_steps`, and a network of that sparsity is written there
        gate_start: null for gates that all begin alike; with `taylor`, the warm-up
            measures how much each unit matters for its cost, and units that matter less
            begin nearer to closing

    Attributes:
        scale: number of updates in one unit of the lengths, which is 1 until the length
            of an epoch is known

    Raises:
        ValueError: a start, a length or milestones out of their range; milestones without
            updates between them; an unknown gate_start, or one with a warm-up that is too
            short for it
    """

    def __init__(
        self,
        start: float = 0.0,
        warmup_steps: float = 1000,
        ramp_steps: float = 10000,
        hold_steps: float = 10000,
        in_epochs: bool = False,
        milestones: list[float] | None = None,
        gate_start: str | None = None,
    ):
        self.start, self.in_epochs, self.scale = start, in_epochs, 1
        self.gate_start = gate_start
        self.lengths = warmup_steps, ramp_steps, hold_steps
        lengths = dict(zip(LENGTHS, self.lengths, strict=True))
        check(WHERE, {"start": start, **lengths})
        if milestones is not None:
            check(WHERE, {"milestones": milestones})
        self.milestones = [*(milestones or ())]
        for name, length in lengths.items():
            if not in_epochs and length != int(length):
                raise ValueError(
                    f"{WHERE}: {name} is {length}; expected a whole number of updates, "
                    "or in_epochs: true"
                )
        if ramp_steps + hold_steps == 0:
            raise ValueError(
                f"{WHERE}: ramp_steps and hold_steps are both 0; expected some updates "
                "in which the gates can train"
            )
        if gate_start not in (None, *GATE_STARTS):
            raise ValueError(
                f"{WHERE}: gate_start is {gate_start!r}; expected "
                f"{', '.join(GATE_STARTS)}, or null for gates that begin alike"
            )
        if not in_epochs:  # otherwise once an epoch's length is known
            self._check_warmup()
            self._check_pauses()

    def fit_(self, updates: int) -> None:
        """Take an epoch's length in updates, for phases that are in epochs.

        Raises:
            ValueError: a ramp or a hold that is too small a part of an epoch to have an
                update, or a warm-up that is too short for `gate_start`
        """
        self.scale = updates
        self._check_warmup()
        phases = {"ramp_steps": self.ramp_updates, "hold_steps": self.hold_updates}
        for name, asked in zip(LENGTHS[1:], self.lengths[1:], strict=True):
            if asked and not phases[name]:
                raise ValueError(
                    f"{WHERE}: {name} is {asked} epochs, which is no update where an "
                    f"epoch has {updates}; expected {1 / updates:.3g} or more, or 0"
                )
        self._check_pauses()

    def _check_pauses(self) -> None:
        """Raise ValueError for milestones without a hold, or without a ramp between."""
        if len(self.milestones) < 2:
            return
        if not self.hold_updates:
            raise ValueError(
                f"{WHERE}: hold_steps is {self.lengths[2]}, milestones is "
                f"{self.milestones}; expected some updates in which the gates settle at "
                "each milestone"
            )
        if self.pauses[-1][1] >= self.hold_begins:
            raise ValueError(
                f"{WHERE}: ramp_steps is {self.lengths[1]}, milestones is "
                f"{self.milestones}; expected a longer ramp, with some updates before "
                "each milestone"
            )

    @property
    def ramp_updates(self) -> int:
        """Return in how many updates the targets rise, without the pauses."""
        return round(self.scale * sum(self.lengths[:2])) - self.ramp_begins

    @property
    def hold_updates(self) -> int:
        """Return how many updates a hold has."""
        begins = round(self.scale * sum(self.lengths[:2]))
        return round(self.scale * sum(self.lengths)) - begins

    @property
    def length(self) -> float:
        """Return the length of all phases before `frozen`, in their unit."""
        return sum(self.lengths) + max(len(self.milestones) - 1, 0) * self.lengths[2]

    def _check_warmup(self) -> None:
        if self.ramp_begins < self.least_warmup:
            raise ValueError(
                f"{WHERE}: warmup_steps is {self.lengths[0]:g}, which makes "
                f"{self.ramp_begins} updates, but gate_start is {self.gate_start!r}; "
                f"expected warmup_steps of {self.least_warmup / self.scale:.3g} or more, "
                "in which the importances are measured, or no gate_start"
            )

    @property
    def least_warmup(self) -> int:
        """Return how many updates the warm-up must have at least."""
        return 0 if self.gate_start is None else MEASURED

    @property
    def ramp_begins(self) -> int:
        """Return how many updates have been made when the ramp begins."""
        return round(self.scale * self.lengths[0])

    @property
    def hold_begins(self) -> int:
        """Return how many updates have been made when the target has been reached."""
        pauses = max(len(self.milestones) - 1, 0) * self.hold_updates
        return self.ramp_begins + self.ramp_updates + pauses

    @property
    def frozen_begins(self) -> int:
        """Return how many updates have been made when the gates are fixed."""
        return self.hold_begins + self.hold_updates

    @property
    def pauses(self) -> list[tuple[int, int]]:
        """Return how many updates have been made as the hold of each milestone begins,
        and as it ends; the last milestone is left out, as the gates are fixed there."""
        found: list[tuple[int, int]] = []
        length, hold, earliest = self.ramp_updates, self.hold_updates, 0
        for share in self.milestones[:-1]:
            reached = bisect.bisect_left(
                range(length),
                share - ROUNDING,
                lo=min(earliest, length),
                key=lambda made: self.sparsity(self.milestones[-1], made / length),
            )
            begins = self.ramp_begins + reached + len(found) * hold
            found.append((begins, begins + hold))
            earliest = reached + 1
        return found

    def hold_ends(self, update: int) -> int | None:
        """Return how many updates have been made as the hold ends that `update` updates
        are in; None on a ramp, and where a hold only begins."""
        holds = [*self.pauses, (self.hold_begins, self.frozen_begins)]
        if update > self.frozen_begins:
            return self.frozen_begins
        return next((end for begin, end in holds if begin < update <= end), None)

    def milestone(self, update: int) -> float | None:
        """Return the milestone whose hold ends after `update` updates; None without one,
        and for the last, at which the gates of the network itself are fixed."""
        ends = [end for _, end in self.pauses]
        return self.milestones[ends.index(update)] if update in ends else None

    @property
    def settings(self) -> dict[str, object]:
        """Return what a resumed run must have in common with its beginning."""
        return {
            "sparsity_scheduler": type(self).__name__,
            "start": self.start,
            "in_epochs": self.in_epochs,
            "gate_start": self.gate_start,
            "milestones": self.milestones,
            **dict(zip(LENGTHS, self.lengths, strict=True)),
        }

    def phase(self, update: int) -> str:
        """Return the phase after `update` updates: warmup, ramp, hold or frozen."""
        if update < self.ramp_begins:
            return "warmup"
        if update >= self.hold_begins:
            return "hold" if update < self.frozen_begins else "frozen"
        pauses = any(begin <= update <= end for begin, end in self.pauses)
        return "hold" if pauses else "ramp"

    def check_final(self, final: Mapping[str, float]) -> None:
        """Raise ValueError for targets that the schedule does not lead to.

        That is where the start lies beyond one of them, or the first milestone, or where
        the last milestone is not the largest of them.

        Args:
            final: the sparsities to reach in the end, by cost
        """
        lowest, largest = min(final.values()), max(final.values())
        if self.start > lowest:
            raise ValueError(
                f"{WHERE}: start is {self.start}; expected at most the target, {lowest}"
            )
        if not self.milestones:
            return
        if self.milestones[-1] != largest:
            raise ValueError(
                f"{WHERE}: milestones is {self.milestones}; expected the last to be the "
                f"target (the largest, if there are several), {largest}"
            )
        if self.start >= self.milestones[0]:
            raise ValueError(
                f"{WHERE}: start is {self.start}; expected less than the first "
                f"milestone, {self.milestones[0]}"
            )

    def stations(self, final: Mapping[str, float]) -> list[dict[str, float]]:
        """Return the targets at each milestone, and in the end, by cost.

        Args:
            final: the sparsities to reach in the end, by cost
        """
        shares = [
            {
                c: round(share * (s / self.milestones[-1]), DIGITS)
                for c, s in final.items()
            }
            for share in self.milestones[:-1]
        ]
        return [*shares, dict(final)]

    def targets(self, update: int, final: Mapping[str, float]) -> dict[str, float]:
        """Return the target sparsity of each cost after `update` updates.

        Args:
            update: number of updates made
            final: the sparsities to reach in the end, by cost
        """
        if update < self.ramp_begins:
            return dict.fromkeys(final, 0.0)
        if update >= self.hold_begins:
            return dict(final)
        pauses, stations = self.pauses, self.stations(final)
        left = sum(end < update for _, end in pauses)
        below = stations[left - 1] if left else dict.fromkeys(final, 0.0)
        above = stations[left]
        if left < len(pauses) and update >= pauses[left][0]:
            return above
        made = update - self.ramp_begins - left * self.hold_updates
        done = made / self.ramp_updates
        return {  # costs that rise at different paces meet at each milestone
            cost: min(max(self.sparsity(target, done), below[cost]), above[cost])
            for cost, target in final.items()
        }

    def sparsity(self, target: float, done: float) -> float:
        """Return the sparsity on the ramp, `done` in [0, 1) of the way to a target."""
        return self.start + (target - self.start) * self.ramp(done)

    @abstractmethod
    def ramp(self, done: float) -> float:
        """Return which share of the rise is made after `done` in [0, 1) of the time."""

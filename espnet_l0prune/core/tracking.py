"""Tracking watches how the expected sparsity follows its target, and names remedies."""

from itertools import pairwise

OFF_TARGET = 0.05  # a distance from the target beyond which a warning names the remedy
UNMET = 0.01  # the same of a projection, which meets its targets if gates can


class Tracking:
    """A `Tracking` collects the shortfalls of one constraint over some updates.

    Args:
        equality: whether a sparsity beyond the target is wrong too
    """

    def __init__(self, equality: bool) -> None:
        self.shortfalls: list[float] = []
        self.equality = equality

    def add(self, shortfall: float) -> None:
        """Note the shortfall after an update, target minus expected sparsity."""
        self.shortfalls.append(shortfall if self.equality else max(shortfall, 0.0))

    def remedy(self, phase: str) -> str | None:
        """Return what went wrong and what helps, or None if nothing did."""
        signs = [v > 0 for v in self.shortfalls]
        crossed = [i for i, (a, b) in enumerate(pairwise(signs), 1) if a != b]
        if len(crossed) > 1:  # the first approach to the target is no swing
            largest = max(map(abs, self.shortfalls[crossed[0] :]))
            if largest > OFF_TARGET:
                return (
                    f"swings around its target: it crossed it {len(crossed)} times in "
                    f"{len(signs)} updates, and was up to {largest:.3f} away. Lower "
                    "multiplier_lr in sparsity_constraint_conf."
                )
        last = self.shortfalls[-1] if self.shortfalls else 0.0
        if phase != "ramp" and abs(last) > OFF_TARGET:
            return (
                f"is {last:.3f} from its target, which no longer rises. Raise "
                "multiplier_lr or gate_lr, or lengthen ramp_steps or hold_steps."
            )
        return None


def unmet(shortfall: float) -> str | None:
    """Return what is wrong with a projection's expected sparsity, or None.

    Args:
        shortfall: target minus expected sparsity, after an update
    """
    if abs(shortfall) <= UNMET:
        return None
    return (
        f"is {shortfall:.3f} from its target: no gates were found that meet what is "
        "asked for. Of several targets, leave one out, bring them closer to one another, "
        "or take sparsity_constraint: inequality."
    )

"""These checks tell whether a network's units can meet each target, and all of them."""

from collections.abc import Mapping

import torch

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.costs import TIME
from espnet_l0prune.core.ranking import closing_order


def check_targets(budget: Budget, targets: Mapping[str, float], equality: bool) -> None:
    """Raise ValueError for targets that a training could not meet, or has met before.

    Args:
        budget: counts the network, whose gates are new
        targets: the sparsity to reach, by cost
        equality: whether a sparsity beyond its target is wrong too
    """
    check_reachable(budget, targets)
    check_not_met(budget, targets)
    if equality:
        check_compatible(budget, targets)


def check_reachable(budget: Budget, targets: Mapping[str, float]) -> None:
    """Raise ValueError where the units cannot reach a target; name what they reach."""
    reachable = budget.reachable()
    for cost, target in targets.items():
        if cost not in reachable:
            raise ValueError(
                f"target has {cost}, which this budget does not have; expected some of "
                f"{', '.join(reachable)}"
            )
        if target > reachable[cost]:
            raise ValueError(
                f"the target sparsity in {cost} is {target}, but these units reach at "
                f"most {reachable[cost]:.4f} of the {_amount(budget, cost)} in scope; "
                "choose a lower target or add kinds of units"
            )


def _amount(budget: Budget, cost: str) -> str:
    total = budget.totals[cost]
    return f"{1000 * total:,.1f} ms" if cost == TIME else f"{total:,.0f}"


@torch.no_grad()
def check_not_met(budget: Budget, targets: Mapping[str, float]) -> None:
    """Raise ValueError for a target that new gates, nearly all open, meet already."""
    expected = budget.expected()
    for cost, target in targets.items():
        if target <= float(expected[cost]):
            raise ValueError(
                f"the target sparsity in {cost} is {target}, but the gates' expected "
                f"sparsity at the start is {float(expected[cost]):.4f} already; expected "
                "a higher target, or an open_probability nearer to 1"
            )


def check_compatible(
    budget: Budget, targets: Mapping[str, float], tolerance: float = 0.03
) -> None:
    """Raise ValueError where meeting one target overshoots another one.

    To meet the target in one cost, the sparsity in another cost must rise too. Its least
    rise is estimated by closing first the units that cost least of it. The estimate is
    close, but no bound, hence the tolerance.

    Args:
        budget: counts the network
        targets: the sparsity to reach, by cost
        tolerance: how far beyond its target an estimate may be, as a sparsity
    """
    for targeted, target in targets.items():
        for cost, other in targets.items():
            least = _least(budget, targeted, target, cost) if cost != targeted else 0.0
            if least > other + tolerance:
                raise ValueError(
                    f"the targets contradict each other: a sparsity of {target} in "
                    f"{targeted} takes about {least:.3f} of the {cost} along at least, "
                    f"and their target is {other}. Raise the target in {cost}, leave it "
                    "out, or take sparsity_constraint: inequality, which asks for at "
                    "least so much."
                )


@torch.no_grad()
def _least(
    budget: Budget, targeted: str, target: float, cost: str, steps: int = 10
) -> float:
    """Estimate the least sparsity in one cost that comes with a target in another.

    What a unit takes depends on which units are closed already, so the prices are
    computed anew in each of `steps` steps.

    Args:
        budget: counts the network
        targeted: the cost that has the target
        target: the sparsity to reach in it
        cost: the cost whose sparsity is estimated
        steps: number of steps to the target
    """
    sizes = [len(gate.log_alpha) for gate in budget.gates.values()]
    opened = budget.all_open()
    for step in range(1, steps + 1):
        with torch.enable_grad():
            at = opened.clone().requires_grad_()
            sparsity = budget.sparsity(at)
            takes, gives = (
                torch.autograd.grad(-sparsity[c], at, retain_graph=True)[0]
                for c in (cost, targeted)
            )
        price = (takes + 1e-12) / (gives + 1e-12)
        price[opened == 0] = -torch.inf  # closed units stay first in the order
        scores = [row[:n] for row, n in zip(price, sizes, strict=True)]
        order, full = closing_order(budget.gates, scores), budget.all_open()
        rank, low, high = order.rank.to(full.device), -1, order.length
        while high - low > 1:
            middle = (low + high) // 2
            reached = budget.sparsity(full * (rank >= middle))[targeted]
            enough = reached >= target * step / steps
            low, high = (low, middle) if enough else (middle, high)
        opened = full * (rank >= high)
    return float(budget.sparsity(opened)[cost])

"""Selection decides which units close so that the exact counts meet the targets."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.feasibility import check_reachable
from espnet_l0prune.core.plan import Plan, make_plan
from espnet_l0prune.core.ranking import closing_order

MULTIPLES = torch.logspace(-2, 2, 41).tolist()  # of shares, added to log_alphas


@torch.no_grad()
def select(
    budget: Budget,
    targets: Mapping[str, float],
    tolerance: float = 1e-3,
    scores: Sequence[Tensor] | None = None,
    equality: bool = False,
) -> Plan:
    """Close the least probable units until the exact counts meet the targets.

    The plan's sparsity is at least the target in each cost. A unit that would overshoot
    by more than `tolerance` is passed over as long as smaller ones can fill the gap. At
    the end, units that need not be closed are opened again. Units close in groups of
    their gate's `round_to`.

    Of several targets, the plan may overshoot all but one. With `equality` it comes as
    near to all of them as it can: units that are dear in the cost that overshoots most,
    and cheap in the one that does least, stay open instead of others.

    Args:
        budget: counts the network
        targets: the sparsity to reach, by cost
        tolerance: how far a plan should overshoot the target that it exceeds least, at
            most, as a sparsity; with `equality` each target
        scores: (units,) for each gate, in the budget's order: the lowest close first; by
            default the least probable do
        equality: whether a sparsity beyond its target is to be avoided too

    Raises:
        ValueError: the units cannot reach the targets
    """
    check_reachable(budget, targets)
    if scores is None:
        scores = [gate.log_alpha for gate in budget.gates.values()]
    several = equality and len(targets) > 1
    closed = _meet(budget, targets, tolerance, scores, several)
    if several:
        closed = _balance(budget, targets, tolerance, scores, closed)
    kept = {
        units: ~closed[row, : len(gate.log_alpha)]
        for row, (units, gate) in enumerate(budget.gates.items())
    }
    return make_plan(budget.sites, kept.__getitem__)


def select_each(
    parts: Mapping[str, Budget], targets: Mapping[str, float], equality: bool = False
) -> Plan:
    """Select units for each part of a network, so that each meets the targets by itself.

    See `select` for the arguments, and for what may be raised.
    """
    return functools.reduce(
        operator.or_,
        (select(part, targets, equality=equality) for part in parts.values()),
    )


def _excess(
    budget: Budget, targets: Mapping[str, float], closed: Tensor
) -> dict[str, float]:
    """Return by how much a plan overshoots each target.

    Args:
        closed: which units of each gate are closed, (gates, largest size) bool
    """
    sparsity = budget.sparsity(budget.all_open() * ~closed)
    return {cost: float(sparsity[cost]) - target for cost, target in targets.items()}


def _meet(
    budget: Budget,
    targets: Mapping[str, float],
    tolerance: float,
    scores: Sequence[Tensor],
    several: bool,
) -> Tensor:
    """Close the units with the lowest scores until all targets are met; see `select`.

    Args:
        several: whether all overshoots are to be small, and not only the least

    Returns:
        which units of each gate are closed, (gates, largest size) bool
    """
    order = closing_order(budget.gates, scores)
    ranks, number = order.rank.to(budget.all_open().device), order.length
    rank = ranks.clone()

    def overshoot(closed: Tensor) -> float:
        excess = _excess(budget, targets, closed).values()
        return max(excess) if several else min(excess)

    def gap(closed: Tensor) -> float:
        """Return the least overshoot; it is negative if a target is missed."""
        return min(_excess(budget, targets, closed).values())

    low, fewest = 0, 0 if gap(rank < 0) >= 0 else number
    best = rank < fewest  # the plan that overshoots least so far
    while gap(best) > tolerance:
        high = number
        if low == high or gap(rank < high) < 0:
            break  # the units passed over are needed
        while high - low > 1:  # closing ranks below high is enough, below low not
            middle = (low + high) // 2
            if gap(rank < middle) < 0:
                low = middle
            else:
                high = middle
        closed = rank < high
        if overshoot(closed) < overshoot(best):
            best = closed
        elif several:
            break  # what fills the gap of one cost overshoots the other
        rank[rank == high - 1] = torch.inf
        low = high
    if gap(best) > tolerance:
        groups = ranks[best].unique().flip(0)  # the most probable first
        groups = groups[groups >= order.remainders]
        best = _without_needless(best, ranks, groups, gap, tolerance)
    return best


def _balance(
    budget: Budget,
    targets: Mapping[str, float],
    tolerance: float,
    scores: Sequence[Tensor],
    closed: Tensor,
) -> Tensor:
    """Bring the cost that overshoots most nearer to its target.

    Every unit's score gains a multiple of its share of that cost, minus its share of the
    cost that overshoots least. The multiple that serves best is taken.

    Args:
        budget, targets, tolerance, scores: see `select`
        closed: what `_meet` closes by these scores

    Returns:
        the units to close instead, in the same form
    """
    excess = _excess(budget, targets, closed)
    over, least = max(excess, key=excess.__getitem__), min(excess, key=excess.__getitem__)
    opened = budget.all_open().requires_grad_()
    with torch.enable_grad():
        left = budget.left(opened)
    dear, cheap = (
        torch.autograd.grad(left[cost], opened, retain_graph=True)[0]
        for cost in (over, least)
    )
    rows = dear / dear.mean() - cheap / cheap.mean()
    for multiple in MULTIPLES:
        if max(excess.values()) <= tolerance:
            break
        tilted = [
            score + multiple * row[: len(score)].to(score)
            for score, row in zip(scores, rows, strict=True)
        ]
        other = _meet(budget, targets, tolerance, tilted, several=True)
        found = _excess(budget, targets, other)
        if max(found.values()) < max(excess.values()):
            excess, closed = found, other
    return closed


def _without_needless(
    closed: Tensor,
    ranks: Tensor,
    groups: Tensor,
    gap: Callable[[Tensor], float],
    tolerance: float,
) -> Tensor:
    """Open again what need not be closed.

    Groups are opened in turn, as many at a time as the targets allow; a group that they
    do not allow stays closed.

    Args:
        closed: which units of each gate are closed, (gates, largest size) bool
        ranks: their ranks, (gates, largest size)
        groups: the ranks that may open, in this order
        gap: returns by how much a plan overshoots the target that it exceeds least
        tolerance: how large an overshoot may be that is left as it is
    """
    begin, count, excess = 0, 1, gap(closed)
    while begin < len(groups) and excess > tolerance:
        fewer = closed & ~torch.isin(ranks, groups[begin : begin + count])
        overshoot = gap(fewer)
        if overshoot >= 0:
            closed, excess, begin, count = fewer, overshoot, begin + count, 2 * count
        elif count > 1:
            count //= 2
        else:
            begin += 1
    return closed

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


@torch.no_grad()
def select(
    budget: Budget,
    targets: Mapping[str, float],
    tolerance: float = 1e-3,
    scores: Sequence[Tensor] | None = None,
) -> Plan:
    """Close the least probable units until the exact counts meet the targets.

    The plan's sparsity is at least the target in each cost. A unit that would overshoot
    by more than `tolerance` is passed over as long as smaller ones can fill the gap. At
    the end, units that need not be closed are opened again. Units close in groups of
    their gate's `round_to`.

    Args:
        budget: counts the network
        targets: the sparsity to reach, by cost
        tolerance: how far a plan should overshoot the target that it exceeds least, at
            most, as a sparsity
        scores: (units,) for each gate, in the budget's order: the lowest close first; by
            default the least probable do

    Raises:
        ValueError: the units cannot reach the targets
    """
    check_reachable(budget, targets)
    order, full = closing_order(budget.gates, scores), budget.all_open()
    ranks, number = order.rank.to(full.device), order.length
    rank = ranks.clone()

    def beyond(closed: Tensor) -> float:
        """Return by how much a plan overshoots the target that it exceeds least."""
        sparsity = budget.sparsity(full * ~closed)
        return min(float(sparsity[cost]) - target for cost, target in targets.items())

    def excess(closing: int) -> float:
        return beyond(rank < closing)

    low, fewest = 0, 0 if excess(0) >= 0 else number
    # the smallest excess so far, and the units closed for it
    best = excess(fewest), rank < fewest
    while best[0] > tolerance:
        high = number
        if low == high or excess(high) < 0:
            break  # the units passed over are needed
        while high - low > 1:  # closing ranks below high is enough, below low not
            middle = (low + high) // 2
            if excess(middle) < 0:
                low = middle
            else:
                high = middle
        if excess(high) < best[0]:
            best = excess(high), rank < high
        rank[rank == high - 1] = torch.inf
        low = high
    closed = best[1]
    if best[0] > tolerance:
        groups = ranks[closed].unique().flip(0)  # the most probable first
        groups = groups[groups >= order.remainders]
        closed = _without_needless(closed, ranks, groups, beyond, tolerance)
    kept = {
        units: ~closed[row, : len(gate.log_alpha)]
        for row, (units, gate) in enumerate(budget.gates.items())
    }
    return make_plan(budget.sites, kept.__getitem__)


def select_each(parts: Mapping[str, Budget], targets: Mapping[str, float]) -> Plan:
    """Select units for each part of a network, so that each meets the targets by itself.

    See `select` for what may be raised.
    """
    return functools.reduce(
        operator.or_, (select(part, targets) for part in parts.values())
    )


def _without_needless(
    closed: Tensor,
    ranks: Tensor,
    groups: Tensor,
    beyond: Callable[[Tensor], float],
    tolerance: float,
) -> Tensor:
    """Open again what need not be closed.

    Groups are opened in turn, as many at a time as the targets allow; a group that they
    do not allow stays closed.

    Args:
        closed: which units of each gate are closed, (gates, largest size) bool
        ranks: their ranks, (gates, largest size)
        groups: the ranks that may open, in this order
        beyond: returns by how much a plan overshoots its targets
        tolerance: how large an overshoot may be that is left as it is
    """
    begin, count, excess = 0, 1, beyond(closed)
    while begin < len(groups) and excess > tolerance:
        fewer = closed & ~torch.isin(ranks, groups[begin : begin + count])
        overshoot = beyond(fewer)
        if overshoot >= 0:
            closed, excess, begin, count = fewer, overshoot, begin + count, 2 * count
        elif count > 1:
            count //= 2
        else:
            begin += 1
    return closed

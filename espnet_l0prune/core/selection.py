"""Which units close, so that the real counts meet the targets."""

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
    """Close the least probable units until the real counts meet the targets.

    The plan's sparsity is at least the target in each cost. A unit that would overshoot
    by more than `tolerance` is passed over as long as smaller ones can fill the gap. What
    large units made needless stays open: if any more did, a target would be missed.
    Units go in groups of their gate's `round_to`.

    Args:
        budget: counts the network
        targets: sparsity by cost
        tolerance: how far beyond the target nearest to it a plan should be at most, as a
            share of that cost
        scores: (units,) of each gate, in the budget's order, instead of probabilities:
            the lowest close first

    Raises:
        ValueError: the units cannot reach the targets
    """
    check_reachable(budget, targets)
    order, full = closing_order(budget.gates, scores), budget.all_open()
    ranks, number = order.rank.to(full.device), order.length
    rank = ranks.clone()

    def beyond(closed: Tensor) -> float:
        """How far a plan is beyond the target that it meets least."""
        sparsity = budget.sparsity(full * ~closed)
        return min(float(sparsity[cost]) - target for cost, target in targets.items())

    def excess(closing: int) -> float:
        return beyond(rank < closing)

    low, fewest = 0, 0 if excess(0) >= 0 else number
    # the smallest excess seen, and what is closed there
    best = excess(fewest), rank < fewest
    while best[0] > tolerance:
        high = number
        if low == high or excess(high) < 0:
            break  # what was passed over is needed
        while high - low > 1:  # groups below high: enough; below low: too few
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
    """As `select`, for a network of whose parts each must meet the targets by itself."""
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
    """What must be closed of this: groups are opened in turn, as many at a time as the
    targets allow; one that they do not is passed over.

    Args:
        closed, ranks: of each gate's units, (gates, largest size)
        groups: the ranks of what may open, in this order
        beyond: how far a plan is beyond its targets
        tolerance: how far it may be
    """
    begin, count, excess = 0, 1, beyond(closed)
    while begin < len(groups) and excess > tolerance:
        fewer = closed & ~torch.isin(ranks, groups[begin : begin + count])
        left = beyond(fewer)
        if left >= 0:
            closed, excess, begin, count = fewer, left, begin + count, 2 * count
        elif count > 1:
            count //= 2
        else:
            begin += 1
    return closed

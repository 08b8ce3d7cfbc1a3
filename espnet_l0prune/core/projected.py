"""Gates are moved along the loss here, and onto their targets in the same step.

Of all gates log_alpha, let m be the mean gradient of the loss and v its mean square, both
as Adam has them, and S_c the expected sparsity in cost c, which is to be s_c. A step is

    log_alpha <- log_alpha - rate (m - p),
    rate = eta / (sqrt(v) + epsilon),    p = sum_c lambda_c dS_c / dlog_alpha

which is Adam's step (Kingma and Ba 2015, arXiv 1412.6980) along the gradient of the
Lagrangian, with multipliers lambda_c that are not moved at some rate but solved for:
first those with which the step leaves all S_c as they are, and then those of the shortest
way to S_c = s_c, where gates move in proportion to their rates. So it makes no difference
how large the loss is, and gates only come to rest where the gradient of the loss is a sum
of those of the sparsities, as Lagrange's conditions ask.

The loss moves a gate by at most about eta. The way to the targets is as long as they ask:
where they jump, a single batch says which gates move most.
"""

import math
from collections.abc import Mapping

import torch
from scipy.optimize import brentq
from torch import Tensor

from espnet_l0prune.core.budget import Budget

EPSILON = 0.1  # of the mean of sqrt(v), so that gates without a gradient have a rate
TOLERANCE = 1e-6  # of a sparsity
STEPS = 200  # of Gauss-Newton, at most; some three are enough on a ramp
REACH = 1.0  # how far a log_alpha moves in one of them, at most
UNDECIDED = 0.1, 0.9  # a gate is decided if it is open with a probability outside
SURE = 0.05  # the probability of the other state in a gate that has been moved apart
SHARE = 0.04  # of the gates that may be undecided when they are fixed
NEAREST, FARTHEST = 0.01, 20.0  # from the middle, in log_alpha, as they are moved apart
ROUNDS = 3  # in which the middle is found


class Row:
    """A `Row` reads and writes the log_alphas of a budget's gates in one row.

    Attributes:
        gates: the budget's gates, in its order
        sizes: the number of units of each
        shift: what a log_alpha lacks to the logit of being open, (units of all gates,)
    """

    def __init__(self, budget: Budget):
        self.budget, self.gates = budget, [*budget.gates.values()]
        self.sizes = [len(gate.log_alpha) for gate in self.gates]
        shifts = [torch.full_like(gate.log_alpha, gate.shift) for gate in self.gates]
        self.shift = torch.cat(shifts).detach().double()

    @property
    def values(self) -> Tensor:
        """Return all log_alphas, (units of all gates,) in float64."""
        return self.budget.log_alpha().detach().double()

    def set_(self, values: Tensor) -> None:
        """Take new values, (units of all gates,)."""
        for gate, part in zip(self.gates, values.split(self.sizes), strict=True):
            gate.log_alpha.data.copy_(part)

    def sparsity(self, targets: Mapping[str, float]) -> tuple[Tensor, Tensor]:
        """Return expected sparsities, (costs,), and their gradients, (costs, units)."""
        alphas = [gate.log_alpha for gate in self.gates]
        with torch.enable_grad():
            every = self.budget.expected()
            found = torch.stack([every[cost] for cost in targets])
            rows = [
                torch.cat(torch.autograd.grad(each, alphas, retain_graph=True))
                for each in found
            ]
        return found.detach(), torch.stack(rows).double()


@torch.no_grad()
def step_(
    row: Row, targets: Mapping[str, float], moments: tuple[Tensor, Tensor], size: float
) -> Tensor:
    """Make the step that this file begins with.

    Args:
        row: the gates
        targets: the expected sparsity that they have afterwards, by cost
        moments: m and v, (units of all gates,) each
        size: eta, which is about how far the loss moves a log_alpha at most

    Returns:
        the multipliers of this step, (costs,)
    """
    mean, square = moments
    deviation = square.sqrt()
    rates = size / (deviation + (EPSILON * deviation.mean()).clamp_min(1e-30))
    _, slopes = row.sparsity(targets)
    ways = slopes * rates
    along = _inverse(ways, slopes) @ (ways @ mean)
    row.set_(row.values - rates * mean + along @ ways)
    return along + project_(row, targets, rates)


@torch.no_grad()
def project_(row: Row, targets: Mapping[str, float], rates: Tensor) -> Tensor:
    """Move the gates the shortest way to where the expected sparsities are the targets.

    The way is d = rates sum_c lambda_c dS_c / dlog_alpha, which has the least
    sum_i d_i^2 / rates_i, to first order. Where no gates meet all targets at once, these
    go as near as Gauss-Newton steps take them.

    Args:
        row: the gates
        targets: the expected sparsities to reach, by cost
        rates: how far each gate may move, relative to the others, (units of all gates,)

    Returns:
        the multipliers lambda_c, (costs,)
    """
    found, slopes = row.sparsity(targets)
    aim = found.new_tensor([*targets.values()])
    multipliers, reach = torch.zeros_like(found), REACH
    for _ in range(STEPS):
        missing = aim - found
        if float(missing.abs().max()) <= TOLERANCE or reach < TOLERANCE:
            break
        ways = slopes * rates
        step = _inverse(ways, slopes) @ missing
        way = step @ ways
        longest = float(way.abs().max())
        if not longest:  # all gates are too sure to move
            break
        part, before = min(1.0, reach / longest), row.values
        row.set_(before + part * way)
        now, there = row.sparsity(targets)
        if float((aim - now).norm()) < float(missing.norm()):
            found, slopes, multipliers = now, there, multipliers + part * step
        else:
            row.set_(before)
            reach /= 4
    return multipliers


def _inverse(ways: Tensor, slopes: Tensor) -> Tensor:
    """Return the matrix that turns changes of the sparsities into multipliers.

    Args:
        ways: how gates move for a multiplier of 1, (costs, units)
        slopes: the gradients of the sparsities, (costs, units)

    Returns:
        the matrix, (costs, costs)
    """
    return torch.linalg.pinv(ways @ slopes.T, rtol=1e-9, hermitian=True)


@torch.no_grad()
def settle_(
    row: Row, targets: Mapping[str, float], updates: int, farthest: float = FARTHEST
) -> None:
    """Move gates apart, so that in some updates nearly all of them are decided.

    The distances from a point in between grow by one factor, so that in as many updates
    as are left all but a small share of the gates are decided. The order of the gates
    stays, and the point is such that the mean of the expected sparsities does too.

    Args:
        row: the gates
        targets: the expected sparsities, by cost
        updates: number of updates in which to do so, this one included
        farthest: how far from the middle a gate is moved at most, in log_alpha; one that
            is beyond stays at its distance
    """
    place = row.values + row.shift  # 0 where a gate is as likely open as closed
    low, high = float(place.min()) - FARTHEST, float(place.max()) + FARTHEST
    limit = place.abs().clamp(farthest, FARTHEST)
    enough, goal, centre = math.log((1 - SURE) / SURE), sum(targets.values()), 0.0

    def excess(point: float) -> float:
        row.set_(((place - point) * factor).clamp(-limit, limit) - row.shift)
        expected = row.budget.expected()
        return float(sum(expected[cost] for cost in targets)) - goal

    for _ in range(ROUNDS):
        distance = (place - centre).abs()
        nearest = float(torch.quantile(distance, SHARE, interpolation="lower"))
        factor = max(enough / max(nearest, NEAREST), 1.0) ** (1 / updates)
        centre = brentq(excess, low, high, xtol=1e-8)
    excess(centre)


@torch.no_grad()
def undecided(budget: Budget) -> float:
    """Return the share of gates that may as well be open as closed, in [0, 1]."""
    low, high = UNDECIDED
    probability = torch.cat([gate.probability() for gate in budget.gates.values()])
    return float(((probability > low) & (probability < high)).double().mean())

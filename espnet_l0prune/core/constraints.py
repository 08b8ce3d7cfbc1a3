"""A constraint says what the loss gains while the sparsity is off its target.

The shortfall v = s - S of the expected sparsity S from its target s is positive while the
network is too large. A projection moves the gates onto the target after every update. A
penalty adds a function of v to the loss, which the gates descend, and moves its
multipliers after every update. These are plain numbers by name, so that they are saved
and resumed with the optimizer.

The defaults of the penalties suit a loss of some 20 an utterance, which is what
ESPnet has where it does not normalize the loss by length; they scale with the loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.pace import Pace
from espnet_l0prune.core.projected import Row, project_, settle_, step_
from espnet_l0prune.core.ranges import check

Multipliers = dict[str, float]
WHERE = "sparsity_constraint_conf"


class AbsConstraint(ABC):
    """An `AbsConstraint` holds the gates to a target: an `AbsPenalty` or `AbsProjection`.

    Attributes:
        equality: whether a sparsity beyond the target is corrected too
        one_cost: whether it can only hold the same gates to a single target
    """

    equality = True
    one_cost = False

    @abstractmethod
    def start(self) -> Multipliers:
        """Return the multipliers at the start of training."""


class AbsPenalty(AbsConstraint):
    """An `AbsPenalty` adds to the loss, and the optimizer moves the gates."""

    @abstractmethod
    def penalty(
        self, shortfall: Tensor, multipliers: Multipliers, log_alpha: Tensor
    ) -> Tensor:
        """Return what the loss gains, a scalar.

        Args:
            shortfall: target minus expected sparsity, a scalar
            multipliers: their current values
            log_alpha: all gates that can mend the shortfall, in one row, (gates,)
        """

    def update_(self, shortfall: float, multipliers: Multipliers) -> None:
        """Move the multipliers after an update.

        Args:
            shortfall: the target that the update had, minus the expected sparsity after
                it
            multipliers: their current values, which are changed
        """


class AbsProjection(AbsConstraint):
    """An `AbsProjection` moves the gates itself, and leaves the loss as it is."""

    @abstractmethod
    def step_(
        self,
        budget: Budget,
        targets: Mapping[str, float],
        multipliers: Mapping[str, Multipliers],
        optimizer: L0AdamW,
        pace: Pace,
    ) -> None:
        """Move the gates, and the multipliers with them.

        Args:
            budget: counts what the gates leave
            targets: the expected sparsity to have afterwards, by cost
            multipliers: their current values by cost, which are changed
            optimizer: has the moments of the gates' gradients
            pace: how far the gates may move, and what time they have
        """


class ProjectedConstraint(AbsProjection):
    """This constraint has S = s after every update, and nothing to set.

    The loss has no penalty. Each step of the gates goes along the gradient of the
    Lagrangian, with the multipliers that put it onto the target (see `projected`). So the
    schedule decides how many units close, and the loss decides which. While the target
    stands, the gates are also moved apart, so that they are all but decided when they are
    fixed. Where new gates expect a larger sparsity than the target, theirs is the target.
    """

    def start(self) -> Multipliers:
        return {"lambda": 0.0}

    def step_(
        self,
        budget: Budget,
        targets: Mapping[str, float],
        multipliers: Mapping[str, Multipliers],
        optimizer: L0AdamW,
        pace: Pace,
    ) -> None:
        row, new = Row(budget), budget.new()
        targets = {cost: max(target, new[cost]) for cost, target in targets.items()}
        moments = optimizer.moments([gate.log_alpha for gate in row.gates])
        found = step_(row, targets, moments, pace.size)
        for cost, value in zip(targets, found.tolist(), strict=True):
            multipliers[cost]["lambda"] = value
        if pace.left is not None:
            settle_(row, targets, pace.left, pace.farthest)
            project_(row, targets, torch.ones_like(moments[0]))


class LagrangianConstraint(AbsPenalty):
    """This constraint demands S = s by the penalty lambda1 v + lambda2 v^2 (Jiang et al.
    2023, arXiv 2305.19549, eq. 6).

    Both multipliers ascend the gradient: lambda1 += eta v, lambda2 += eta v^2.

    Args:
        multiplier_lr: step size eta of the multipliers
        lambda1: the linear multiplier at the start
        lambda2: the quadratic multiplier at the start; a large one keeps the expected
            sparsity on the ramp from its first update on, and damps lambda1

    Raises:
        ValueError: an option out of its range
    """

    def __init__(
        self, multiplier_lr: float = 0.5, lambda1: float = 0.0, lambda2: float = 1000.0
    ):
        self.multiplier_lr, self.lambda1, self.lambda2 = multiplier_lr, lambda1, lambda2
        check(WHERE, vars(self))

    def start(self) -> Multipliers:
        return {"lambda1": self.lambda1, "lambda2": self.lambda2}

    def penalty(
        self, shortfall: Tensor, multipliers: Multipliers, log_alpha: Tensor
    ) -> Tensor:
        linear = multipliers["lambda1"] * shortfall
        return linear + multipliers["lambda2"] * shortfall**2

    def update_(self, shortfall: float, multipliers: Multipliers) -> None:
        multipliers["lambda1"] += self.multiplier_lr * shortfall
        multipliers["lambda2"] += self.multiplier_lr * shortfall**2


class InequalityConstraint(AbsPenalty):
    """This constraint demands S >= s by the penalty lambda v with lambda >= 0
    (Gallego-Posada et al. 2022, arXiv 2208.04425).

    The multiplier ascends, lambda += eta v, and restarts from 0 once the target is met.

    Args:
        multiplier_lr: step size eta of the multipliers
        restart: whether the multiplier is set to 0 as soon as the target is met;
            otherwise it descends to 0 as it rose

    Raises:
        ValueError: an option out of its range
    """

    equality = False

    def __init__(self, multiplier_lr: float = 50.0, restart: bool = True):
        check(WHERE, {"multiplier_lr": multiplier_lr})
        self.multiplier_lr, self.restart = multiplier_lr, restart

    def start(self) -> Multipliers:
        return {"lambda": 0.0}

    def penalty(
        self, shortfall: Tensor, multipliers: Multipliers, log_alpha: Tensor
    ) -> Tensor:
        return multipliers["lambda"] * shortfall

    def update_(self, shortfall: float, multipliers: Multipliers) -> None:
        moved = multipliers["lambda"] + self.multiplier_lr * shortfall
        met = self.restart and shortfall <= 0
        multipliers["lambda"] = 0.0 if met else max(moved, 0.0)


class NuPIConstraint(AbsPenalty):
    """This constraint demands S = s by the penalty lambda v, where a PI controller moves
    lambda (Sohrabi et al. 2024, arXiv 2406.04558, algorithm 1):

        xi_t = nu xi_(t-1) + (1 - nu) v_t
        lambda_(t+1) = lambda_t + eta (Ki v_t + Kp (xi_t - xi_(t-1))),  xi_(-1) = 0

    The proportional term damps the oscillations of plain ascent (Kp = 0).

    Args:
        multiplier_lr: step size eta of the multipliers
        kp: gain of the proportional term
        ki: gain of the integral term
        nu: smoothing of the shortfall in the proportional term, in [0, 1)

    Raises:
        ValueError: an option out of its range
    """

    def __init__(
        self,
        multiplier_lr: float = 5.0,
        kp: float = 200.0,
        ki: float = 1.0,
        nu: float = 0.0,
    ):
        self.multiplier_lr, self.kp, self.ki, self.nu = multiplier_lr, kp, ki, nu
        check(WHERE, vars(self))

    def start(self) -> Multipliers:
        return {"lambda": 0.0, "xi": 0.0}

    def penalty(
        self, shortfall: Tensor, multipliers: Multipliers, log_alpha: Tensor
    ) -> Tensor:
        return multipliers["lambda"] * shortfall

    def update_(self, shortfall: float, multipliers: Multipliers) -> None:
        change = (1 - self.nu) * (shortfall - multipliers["xi"])
        step = self.ki * shortfall + self.kp * change
        multipliers["lambda"] += self.multiplier_lr * step
        multipliers["xi"] += change


class PenaltyConstraint(AbsPenalty):
    """This penalty has no target: it puts a price on what is left (Louizos et al. 2018).

    It is there for comparison. The gates drift to wherever the price takes them; only the
    last selection, on the way into phase `frozen`, meets the budget.

    Args:
        weight: factor of the penalty

    Raises:
        ValueError: a `weight` out of its range
    """

    equality = False

    def __init__(self, weight: float = 1.0):
        self.weight = weight
        check(WHERE, vars(self))

    def start(self) -> Multipliers:
        return {}

    def penalty(
        self, shortfall: Tensor, multipliers: Multipliers, log_alpha: Tensor
    ) -> Tensor:
        return self.weight * shortfall


class ControlledL2Constraint(AbsPenalty):
    """This constraint demands S = s by the penalty weight sum (log_alpha - c)^2, whatever
    a gate's unit costs (Kubo et al. 2024, arXiv 2412.04836, where the centre c falls with
    time).

    Here the centre follows the shortfall, c -= eta v, so that it falls as fast as it
    must. It takes a single cost: two centres would pull the same gates apart.

    Args:
        multiplier_lr: step size eta of the multipliers
        centre: the centre c of the log_alphas at the start
        weight: factor of the penalty

    Raises:
        ValueError: an option out of its range
    """

    one_cost = True

    def __init__(
        self, multiplier_lr: float = 0.3, centre: float = 4.6, weight: float = 0.01
    ):
        self.multiplier_lr, self.centre, self.weight = multiplier_lr, centre, weight
        check(WHERE, vars(self))

    def start(self) -> Multipliers:
        return {"centre": self.centre}

    def penalty(
        self, shortfall: Tensor, multipliers: Multipliers, log_alpha: Tensor
    ) -> Tensor:
        return self.weight * (log_alpha - multipliers["centre"]).square().sum()

    def update_(self, shortfall: float, multipliers: Multipliers) -> None:
        multipliers["centre"] -= self.multiplier_lr * shortfall


CONSTRAINTS = {
    "projected": ProjectedConstraint,
    "lagrangian": LagrangianConstraint,
    "inequality": InequalityConstraint,
    "nupi": NuPIConstraint,
    "penalty": PenaltyConstraint,
    "controlled_l2": ControlledL2Constraint,
}

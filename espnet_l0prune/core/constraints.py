"""Constraints on the expected sparsity: what the loss gains, how multipliers move.

The shortfall v = s - S of the expected sparsity S from its target s is positive while
the network is too large. Every constraint adds a penalty of v to the loss, which the
gates descend, and after every update moves its multipliers, which are plain numbers by
name, so that they are saved and resumed with the optimizer.

The defaults suit a loss of some 20 an utterance, as ESPnet's is where it is not
normalized by length; they scale with the loss (benchmarks/landing.py).
"""

from abc import ABC, abstractmethod

from torch import Tensor

from espnet_l0prune.core.ranges import check

Multipliers = dict[str, float]
WHERE = "sparsity_constraint_conf"


class AbsConstraint(ABC):
    """How the gates are held to their target; the interface of all constraints.

    Attributes:
        equality: whether a sparsity beyond the target is corrected too
        one_cost: whether it can hold the same gates to one target only
    """

    equality = True
    one_cost = False

    @abstractmethod
    def start(self) -> Multipliers:
        """The multipliers at the start of training."""

    @abstractmethod
    def penalty(
        self, shortfall: Tensor, multipliers: Multipliers, log_alpha: Tensor
    ) -> Tensor:
        """What the loss gains: a scalar.

        Args:
            shortfall: target minus expected sparsity, a scalar
            multipliers: as they are now
            log_alpha: of all gates that can mend the shortfall, in one row: (gates,)
        """

    def update_(  # noqa: B027 (a plain penalty has nothing to move)
        self, shortfall: float, multipliers: Multipliers
    ) -> None:
        """Move the multipliers after an update; `shortfall` is what the gates then have
        from the target that the update had."""


class LagrangianConstraint(AbsConstraint):
    """S = s, by lambda1 v + lambda2 v^2 (Jiang et al. 2023, arXiv 2305.19549, eq. 6).

    Both multipliers ascend the gradient: lambda1 += eta v, lambda2 += eta v^2.

    Args:
        multiplier_lr: eta
        lambda1, lambda2: the multipliers at the start; a large lambda2 keeps the gates
            on the ramp from its first update on, and damps lambda1

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


class InequalityConstraint(AbsConstraint):
    """S >= s, by lambda v with lambda >= 0 (Gallego-Posada et al. 2022, arXiv
    2208.04425): the multiplier ascends, and restarts from 0 where the target is met.

    Args:
        multiplier_lr: eta
        restart: whether a satisfied constraint sets its multiplier to 0; otherwise it
            descends to 0 as it came

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


class NuPIConstraint(AbsConstraint):
    """S = s, by lambda v, where a PI controller moves lambda (Sohrabi et al. 2024, arXiv
    2406.04558, algorithm 1):

        xi_t = nu xi_(t-1) + (1 - nu) v_t
        lambda_(t+1) = lambda_t + eta (Ki v_t + Kp (xi_t - xi_(t-1))),  xi_(-1) = 0

    The proportional term damps the oscillations of plain ascent (Kp = 0).

    Args:
        multiplier_lr: eta
        kp, ki: gains of the proportional and of the integral term
        nu: smoothing of the shortfall, in [0, 1)

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


class PenaltyConstraint(AbsConstraint):
    """No target: a price on what is left (Louizos et al. 2018), for comparison.

    The gates drift wherever the price takes them; only the last selection, on the way
    into phase `frozen`, meets the budget.

    Args:
        weight: the price of the whole cost

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


class ControlledL2Constraint(AbsConstraint):
    """S = s, by weight sum (log_alpha - c)^2, whatever a gate's unit costs (Kubo et al.
    2024, arXiv 2412.04836, where the centre c falls with time).

    Here the centre follows the shortfall, c -= eta v: it falls as fast as it must. Two
    centres for the same gates would pull apart.

    Args:
        multiplier_lr: eta
        centre: c at the start
        weight: of the penalty

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
    "lagrangian": LagrangianConstraint,
    "inequality": InequalityConstraint,
    "nupi": NuPIConstraint,
    "penalty": PenaltyConstraint,
    "controlled_l2": ControlledL2Constraint,
}

"""The constrained part of training: phases, multipliers and the penalty."""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from espnet_l0prune.core.budget import Budget, check_reachable, select
from espnet_l0prune.core.constraints import AbsConstraint, Multipliers
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.schedules import AbsSparsityScheduler
from espnet_l0prune.core.sites import decide_

OFF_TARGET = 0.05  # from here on a warning names the remedy, in phase hold
MEANING = {
    "warmup": "the gates are bypassed, the network is dense",
    "ramp": "the gates train, and the target sparsity rises",
    "hold": "the target stands, and the gates settle on it",
    "frozen": "the gates are fixed to 0 or 1, and the weights go on training",
}


class SparsityController:
    """Leads the gates of a network to a target sparsity in one cost, or in several.

    The loss gains the constraint's penalty of each cost's shortfall, target minus
    expected sparsity, and after every update the cost's multipliers move. Clipping,
    weight decay and loss scaling never see the multipliers.

    All that must be resumed lives in the optimizer and in the gates.

    Args:
        budget: counts the network
        scheduler: phase and targets as functions of the number of updates
        constraint: penalty and multipliers
        optimizer: trains the gates; keeps the number of updates and the multipliers

    Raises:
        ValueError: a target that the units cannot reach
    """

    def __init__(
        self,
        budget: Budget,
        scheduler: AbsSparsityScheduler,
        constraint: AbsConstraint,
        optimizer: L0AdamW,
    ):
        check_reachable(budget, scheduler.goal)
        _check_not_met(budget, scheduler.goal)
        self.budget, self.scheduler, self.constraint = budget, scheduler, constraint
        self.optimizer = optimizer
        self.settings = {
            **scheduler.settings,
            "sparsity_constraint": type(constraint).__name__,
        }
        optimizer.pruning.update(
            multipliers={cost: constraint.start() for cost in scheduler.goal},
            settings=self.settings,
            scale=scheduler.scale,
        )
        self._announced: str | None = None
        self._enter_phase()
        optimizer.register_step_pre_hook(lambda *_: self._before_update())
        optimizer.register_step_post_hook(lambda *_: self._after_update())
        optimizer.register_load_state_dict_post_hook(lambda _: self._resume())

    @property
    def update(self) -> int:
        """Updates made so far."""
        return self.optimizer.pruning["update"]

    @property
    def phase(self) -> str:
        return self.scheduler.phase(self.update)

    @property
    def _training(self) -> bool:
        return self.phase in ("ramp", "hold")

    def begin_epoch(self, updates: int, epochs: int) -> None:
        """Fit the schedule to the run, and say so early where it does not fit.

        Args:
            updates: of this epoch
            epochs: of the whole run

        Raises:
            ValueError: gates that would not be frozen when the run ends; epochs of
                another length than before the run was resumed
        """
        scheduler, state = self.scheduler, self.optimizer.pruning
        if not updates:
            raise ValueError(
                "an epoch has fewer batches than accum_grad, so that no update is made; "
                "expected accum_grad of at most the number of batches"
            )
        if scheduler.in_epochs:
            if self.update and updates != scheduler.scale:
                raise ValueError(
                    f"an epoch has {updates} updates, but had {scheduler.scale} when "
                    "the run began; the schedule, which is in epochs, would jump. "
                    "Resume with the same data, batches and accum_grad."
                )
            scheduler.scale = state["scale"] = updates
        needed, last = scheduler.frozen_begins, updates * epochs
        if needed > last:
            raise ValueError(
                f"the gates freeze after {needed} updates (warmup, ramp and hold), but "
                f"this run ends after {last}: {epochs} epochs of {updates}. Raise "
                f"max_epoch to {-(-needed // updates) + 1}, or shorten warmup_steps, "
                f"ramp_steps and hold_steps to {max(last - updates, 1)} in all."
            )
        if self.phase == "hold":
            self._check_landing()

    @torch.no_grad()
    def _check_landing(self) -> None:
        for cost, shortfall in self._shortfalls().items():
            if abs(float(shortfall)) > OFF_TARGET:
                logging.warning(
                    f"The expected sparsity in {cost} is {float(shortfall):.3f} from its "
                    "target in phase 'hold'. If it swings around the target, lower "
                    "multiplier_lr; if it lags behind, raise multiplier_lr or gate_lr, "
                    "or lengthen ramp_steps."
                )

    def _resume(self) -> None:
        state = self.optimizer.pruning
        changed = [
            f"{name} was {old}, is {self.settings.get(name)}"
            for name, old in state["settings"].items()
            if old != self.settings.get(name)
        ]
        if changed:
            raise ValueError(
                f"this run was begun with other settings: {'; '.join(changed)}. Its "
                "phases, targets and multipliers would jump. Resume with the old "
                "settings, or begin in a new --output_dir with --init_param."
            )
        self.scheduler.scale, self._announced = state["scale"], None
        self._enter_phase()

    def _gates(self) -> list[HardConcrete]:
        return list(self.budget.gates.values())

    @property
    def multipliers(self) -> dict[str, Multipliers]:
        """Those of each cost."""
        return self.optimizer.pruning["multipliers"]

    def _shortfalls(self) -> dict[str, Tensor]:
        expected = self.budget.expected()
        targets = self.scheduler.targets(self.update)
        return {cost: target - expected[cost] for cost, target in targets.items()}

    def penalty(self) -> Tensor:
        """The constraints' share of the loss: a scalar."""
        total = torch.zeros((), dtype=torch.float64)
        if not self._training:
            return total
        for cost, shortfall in self._shortfalls().items():
            penalty = self.constraint.penalty(shortfall, self.multipliers[cost])
            total = total.to(penalty.device) + penalty
        return total

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """Target, expected and actual sparsity in each cost, and the multipliers."""
        targets = self.scheduler.targets(self.update)
        expected = {cost: float(s) for cost, s in self.budget.expected().items()}
        found = {
            "sparsity_target": targets,
            "sparsity_expected": expected,
            "sparsity_actual": self.budget.actual(),
        }
        for cost, multipliers in self.multipliers.items():
            for name, value in multipliers.items():
                found.setdefault(name, {})[cost] = value
        return {
            f"{k}_{cost}": v for k, costs in found.items() for cost, v in costs.items()
        }

    def _before_update(self) -> None:
        if not self._training:
            for gate in self._gates():
                gate.log_alpha.grad = None

    @torch.no_grad()
    def _after_update(self) -> None:
        if self._training:
            for cost, shortfall in self._shortfalls().items():
                self.constraint.update_(float(shortfall), self.multipliers[cost])
                _check_finite(cost, self.multipliers[cost])
        self.optimizer.pruning["update"] += 1
        self._enter_phase()

    def _enter_phase(self) -> None:
        """On the way into a phase, tell the gates; into `frozen`, fix them."""
        if self.phase == self._announced:
            return
        for gate in self._gates():
            gate.sampling = self._training
        if self.phase == "frozen" and not all(g.is_decided() for g in self._gates()):
            plan = select(self.budget, self.scheduler.goal)
            decide_(self.budget.sites, plan)
        self._announced = self.phase
        actual = ", ".join(f"{k} {v:.4f}" for k, v in self.budget.actual().items())
        logging.info(
            f"Pruning enters phase {self.phase!r} at update {self.update}: "
            f"{MEANING[self.phase]} (actual sparsity: {actual})"
        )


@torch.no_grad()
def _check_not_met(budget: Budget, goal: Mapping[str, float]) -> None:
    """Raise ValueError for a target that new gates, all but open, have passed already."""
    expected = budget.expected()
    for cost, target in goal.items():
        if target <= float(expected[cost]):
            raise ValueError(
                f"the target sparsity in {cost} is {target}, but the gates' expected "
                f"sparsity at the start is {float(expected[cost]):.4f} already; expected "
                "a higher target, or an open_probability nearer to 1"
            )


def _check_finite(cost: str, multipliers: Multipliers) -> None:
    if not all(math.isfinite(value) for value in multipliers.values()):
        raise ValueError(
            f"the multipliers of {cost} diverged: {multipliers}; expected finite "
            "numbers. Lower multiplier_lr in sparsity_constraint_conf."
        )

"""The constrained part of training: phases, multipliers and the penalty."""

import logging

import torch
from torch import Tensor

from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.schedules import AbsSparsityScheduler
from espnet_l0prune.core.sites import Budget, decide_, select

MEANING = {
    "warmup": "the gates are bypassed, the network is dense",
    "ramp": "the gates train, and the target sparsity rises",
    "hold": "the target stands, and the gates settle on it",
    "frozen": "the gates are fixed to 0 or 1, and the weights go on training",
}


class SparsityController:
    """Leads the gates of a network to a target sparsity.

    With the expected sparsity S and the target s, the loss gains

        lambda1 (s - S) + lambda2 (s - S)^2

    and the multipliers go up its gradient (Jiang et al. 2023, equation 6): after
    every update, lambda1 += eta (s - S) and lambda2 += eta (s - S)^2. Clipping,
    weight decay and loss scaling never see the multipliers.

    All that must be resumed lives in the optimizer and in the gates.

    Args:
        budget: counts the parameters of the network
        scheduler: phase and target as functions of the number of updates
        optimizer: trains the gates; keeps the number of updates and the multipliers
    """

    def __init__(
        self, budget: Budget, scheduler: AbsSparsityScheduler, optimizer: L0AdamW
    ):
        reachable = budget.reachable()
        if scheduler.goal > reachable:
            raise ValueError(
                f"sparsity_scheduler_conf: target is {scheduler.goal}, but these units "
                f"reach at most {reachable:.4f} of the encoder's {budget.total} "
                "parameters; choose a lower target or add kinds of units"
            )
        self.budget, self.scheduler, self.optimizer = budget, scheduler, optimizer
        self._announced: str | None = None
        self._enter_phase()
        optimizer.register_step_pre_hook(lambda *_: self._before_update())
        optimizer.register_step_post_hook(lambda *_: self._after_update())
        optimizer.register_load_state_dict_post_hook(lambda _: self._enter_phase())

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

    def _gates(self) -> list[HardConcrete]:
        return [g for site in self.budget.sites for g in site.gates.values()]

    def _violation(self) -> Tensor:
        return self.scheduler.target(self.update) - self.budget.expected()

    def penalty(self) -> Tensor:
        """The constraint's share of the loss: a scalar."""
        if not self._training:
            return torch.zeros((), dtype=torch.float64)
        state, violation = self.optimizer.pruning, self._violation()
        return state["lambda1"] * violation + state["lambda2"] * violation**2

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """Target, expected and actual sparsity, and the multipliers."""
        state = self.optimizer.pruning
        return {
            "sparsity_target": self.scheduler.target(self.update),
            "sparsity_expected": float(self.budget.expected()),
            "sparsity_actual": self.budget.actual(),
            "lambda1": state["lambda1"],
            "lambda2": state["lambda2"],
        }

    def _before_update(self) -> None:
        if not self._training:
            for gate in self._gates():
                gate.log_alpha.grad = None

    @torch.no_grad()
    def _after_update(self) -> None:
        state = self.optimizer.pruning
        if self._training:
            violation = float(self._violation())
            state["lambda1"] += state["multiplier_lr"] * violation
            state["lambda2"] += state["multiplier_lr"] * violation**2
        state["update"] += 1
        self._enter_phase()

    def _enter_phase(self) -> None:
        """Tell the gates the phase; on the way into `frozen`, fix them."""
        for gate in self._gates():
            gate.sampling = self._training
        if self.phase == "frozen" and not all(g.is_decided() for g in self._gates()):
            plan = select(self.budget, self.scheduler.goal)
            decide_(self.budget.sites, plan)
        if self.phase != self._announced:
            self._announced = self.phase
            logging.info(
                f"Pruning enters phase {self.phase!r} at update {self.update}: "
                f"{MEANING[self.phase]} (actual sparsity {self.budget.actual():.4f})"
            )

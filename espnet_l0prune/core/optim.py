"""AdamW with rates of their own for weights and gates."""

import math
from collections.abc import Iterable

import torch

from espnet_l0prune.core.gates import LogAlpha
from espnet_l0prune.core.ranges import check

ORDERS = ("joint", "alternating", "gates")


class L0AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) for a network with hard-concrete gates.

    Parameters of type LogAlpha form a group of their own, without weight decay, at
    the constant rate `gate_lr`: schedulers of the learning rate do not touch it. That
    group also carries what pruning must resume from, as plain numbers: `update` (the
    updates made) and the `multipliers` of each constrained cost.

    Args:
        params: parameters or parameter groups of the model
        lr: learning rate of the weights; the one a scheduler scales
        gate_lr: step size of the log_alphas
        betas, eps, weight_decay: as in AdamW
        order: what an update moves while the gates train: weights and gates
            (`joint`), both in turn (`alternating`), or only `gates`

    Raises:
        ValueError: an unknown order, or a number out of its range
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        gate_lr: float = 0.02,
        betas: tuple[float, float] | list[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        order: str = "joint",
    ):
        if order not in ORDERS:
            raise ValueError(
                f"optim_conf: order is {order!r}; expected one of {', '.join(ORDERS)}"
            )
        rates = {"lr": lr, "gate_lr": gate_lr, "betas": betas}
        check("optim_conf", {**rates, "eps": eps, "weight_decay": weight_decay})
        self.order = order
        self._gate_group = {
            "gate_lr": gate_lr,
            "update": 0,
            "multipliers": {},
            "weight_decay": 0.0,
        }
        super().__init__(
            params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay
        )
        self.register_step_pre_hook(_use_gate_rate)
        self.register_step_post_hook(_use_scheduled_rate)

    def add_param_group(self, group: dict) -> None:
        """Add a group; its gates, if any, go into a group of their own."""
        params = group["params"]
        params = [params] if isinstance(params, torch.Tensor) else list(params)
        gates = [p for p in params if isinstance(p, LogAlpha)]
        weights = [p for p in params if not isinstance(p, LogAlpha)]
        if weights or not gates:
            super().add_param_group({**group, "params": weights})
        if gates:
            super().add_param_group({**group, **self._gate_group, "params": gates})

    def leave_out(self, *kinds: str) -> None:
        """Leave `weights` or `gates` out of this update: they lose their gradients."""
        for group in self.param_groups:
            if ("gates" if "update" in group else "weights") in kinds:
                for parameter in group["params"]:
                    parameter.grad = None

    def updates_to_move(self, distance: float) -> int:
        """How many updates move a log_alpha so far, at least: under Adam one update moves
        it by `gate_lr` at most, or little more."""
        turns = 2 if self.order == "alternating" else 1
        return turns * math.ceil(distance / self.pruning["gate_lr"])

    @property
    def pruning(self) -> dict:
        """The group of the gates, with `update` and `multipliers`; there must be one."""
        return next(g for g in self.param_groups if "update" in g)


# `step` itself is not overridden: torch runs the hooks of an optimizer once for every
# class whose `step` it has wrapped, and would run ours twice beside a plain AdamW.


def _use_gate_rate(optimizer: L0AdamW, *_) -> None:
    for group in optimizer.param_groups:
        if "update" in group:
            group["scheduled_lr"], group["lr"] = group["lr"], group["gate_lr"]


def _use_scheduled_rate(optimizer: L0AdamW, *_) -> None:
    for group in optimizer.param_groups:
        if "update" in group:
            group["lr"] = group.pop("scheduled_lr")

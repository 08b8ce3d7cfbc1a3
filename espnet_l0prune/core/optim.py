"""This optimizer is AdamW with separate learning rates for weights and gates."""

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from espnet_l0prune.core.gates import LogAlpha
from espnet_l0prune.core.ranges import check

ORDERS = ("joint", "alternating", "gates")


@dataclass
class Progress:
    """A `Progress` is what a pruning resumes from, besides gates and weights.

    It holds plain numbers and names only.

    Attributes:
        update: number of updates made so far
        multipliers: the constraint's multipliers, by cost or by cost and part
        settings: what a resumed run must have in common with the one that it continues
        scale: number of updates in one unit of the schedule's lengths
    """

    update: int = 0
    multipliers: dict[str, dict[str, float]] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    scale: int = 1


class Controller(Protocol):
    """A `Controller` is what an optimizer calls to lead the gates as well."""

    def update_(self) -> None:
        """Make one update with the present gradients by calling `L0AdamW.move_`."""

    def check_settings(self, before: Mapping[str, object]) -> None:
        """Raise ValueError for settings other than those at the run's beginning."""

    def resume_(self) -> None:
        """Go on from the progress that was loaded."""


PROGRESS = [each.name for each in dataclasses.fields(Progress)]


class L0AdamW(torch.optim.AdamW):
    """This optimizer is AdamW (Loshchilov and Hutter 2019) for a network with L0 gates.

    Parameters of type LogAlpha form a group of their own, without weight decay, at the
    constant learning rate `gate_lr`, which learning rate schedulers do not change.

    Args:
        params: parameters or parameter groups of the model
        lr: learning rate of the weights, which a scheduler scales
        gate_lr: learning rate of the gates' log_alphas
        betas: decay rates of AdamW's two moments
        eps: what AdamW adds to its denominator
        weight_decay: AdamW's decay of the weights; gates have none
        order: what an update moves while the gates train: weights and gates (`joint`),
            both in turn (`alternating`), or only the gates (`gates`)

    Attributes:
        progress: what a pruning resumes from; it is saved and loaded with the group of
            the gates
        controller: makes each update, as a `SparsityController` does; None for plain
            AdamW with two learning rates

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
        self.order, self.gate_lr = order, gate_lr
        self.progress = Progress()
        self.controller: Controller | None = None
        super().__init__(
            params, lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay
        )

    def add_param_group(self, group: dict) -> None:
        """Add a parameter group; if it has gates, they go into a group of their own."""
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        gates = [p for p in params if isinstance(p, LogAlpha)]
        weights = [p for p in params if not isinstance(p, LogAlpha)]
        if weights or not gates:
            super().add_param_group({**group, "params": weights})
        if gates:
            own = {"gate_lr": self.gate_lr, "weight_decay": 0.0}
            super().add_param_group({**group, **own, "params": gates})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update, through the controller if there is one.

        A batch that was skipped makes none: a closure without loss and gradients.

        Args:
            closure: computes the gradients and the loss, which is returned; None where
                the gradients have been computed already
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if loss is None and not self._has_gradients():
                return None
        if self.controller is None:
            self.move_()
        else:
            self.controller.update_()
        return loss

    def _has_gradients(self) -> bool:
        params = itertools.chain(*(group["params"] for group in self.param_groups))
        return any(parameter.grad is not None for parameter in params)

    def move_(
        self, weights: bool = True, gates: bool = True, gate_lr: float | None = None
    ) -> None:
        """Let AdamW move weights, gates, or both; the others lose their gradients.

        Args:
            weights, gates: whether these move
            gate_lr: learning rate of the gates instead of the optimizer's own; with 0
                only their moments are updated
        """
        scheduled = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            of_gates = is_of_gates(group)
            if of_gates:
                group["lr"] = self.gate_lr if gate_lr is None else gate_lr
            if not (gates if of_gates else weights):
                for parameter in group["params"]:
                    parameter.grad = None
        step: Any = torch.optim.AdamW.step
        if hasattr(step, "hooked"):  # otherwise the hooks of our own step would run twice
            step = step.__wrapped__
        step(self)
        for group, lr in zip(self.param_groups, scheduled, strict=True):
            group["lr"] = lr

    @torch.no_grad()
    def moments(self, gates: Sequence[LogAlpha]) -> tuple[Tensor, Tensor]:
        """Return Adam's mean of the gates' gradients, and their mean square.

        Both are unbiased, and 0 where a gate has had no gradient yet.

        Args:
            gates: some of the log_alphas, (n,) each

        Returns:
            both in float64, (all n together,)

        Raises:
            ValueError: they are no finite numbers
        """
        betas = next(g["betas"] for g in self.param_groups if is_of_gates(g))
        moments: dict[str, list[Tensor]] = {"exp_avg": [], "exp_avg_sq": []}
        for gate in gates:
            state = self.state.get(gate) or dict.fromkeys(moments, torch.zeros_like(gate))
            for (name, rows), beta in zip(moments.items(), betas, strict=True):
                unbiased = 1 - beta ** float(state.get("step", 1))
                rows.append(state[name].double() / unbiased)
        mean, square = (torch.cat(rows) for rows in moments.values())
        if not (mean.isfinite().all() and square.isfinite().all()):
            raise ValueError(
                "the mean gradients of the gates are not all finite numbers: the loss or "
                "a gradient was none. Lower lr in optim_conf, or skip such batches."
            )
        return mean, square

    def forget_(self, gates: Iterable[LogAlpha]) -> None:
        """Drop Adam's moments of some gates, so that they are computed anew."""
        for gate in gates:
            self.state.pop(gate, None)

    def updates_to_move(self, distance: float) -> int:
        """Return how many updates, at least, move a log_alpha by a distance.

        Under Adam one update moves it by hardly more than `gate_lr`.
        """
        return self.turns * math.ceil(distance / self.gate_lr)

    @property
    def turns(self) -> int:
        """Return how many updates there are for each that moves the gates."""
        return 2 if self.order == "alternating" else 1

    def state_dict(self) -> dict[str, Any]:
        """Return an optimizer's state, with the progress in the first group of gates."""
        state = super().state_dict()
        pairs = zip(self.param_groups, state["param_groups"], strict=True)
        of_gates = (saved for group, saved in pairs if is_of_gates(group))
        for saved in itertools.islice(of_gates, 1):
            saved.update(dataclasses.asdict(self.progress))
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: a state of other parameters, or one that was begun with other
                settings
        """
        progress = progress_in(state)
        if self.controller is not None and progress is not None:
            self.controller.check_settings(progress.settings)
        super().load_state_dict(dict(state))
        for group in self.param_groups:
            for name in PROGRESS:
                group.pop(name, None)
        if progress is not None:
            self.progress = progress
            if self.controller is not None:
                self.controller.resume_()


def is_of_gates(group: Mapping[str, Any]) -> bool:
    """Return whether the parameters of an optimizer's group are gates."""
    return any(isinstance(parameter, LogAlpha) for parameter in group["params"])


def progress_in(state: Mapping[str, Any]) -> Progress | None:
    """Return the progress in an optimizer's state dict, or None if that has no gates."""
    for group in state["param_groups"]:
        if "multipliers" in group:
            saved = {name: group[name] for name in PROGRESS if name in group}
            return Progress(**copy.deepcopy(saved))
    return None

"""The constrained part of training: phases, multipliers and the penalty."""

import logging
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from espnet_l0prune.core.batch_norm import batch_norms, restart_
from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.constraints import AbsConstraint, Multipliers
from espnet_l0prune.core.feasibility import check_compatible, check_reachable
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.pace import shortage
from espnet_l0prune.core.schedules import AbsSparsityScheduler
from espnet_l0prune.core.selection import select_each

OFF_TARGET = 0.05  # from here on a warning names the remedy
MEANING = {
    "warmup": "the gates are bypassed, the network is dense",
    "ramp": "the gates train, and the target sparsity rises",
    "hold": "the target stands, and the gates settle on it",
    "frozen": "the gates are fixed to 0 or 1, and the weights go on training",
}


class SparsityController:
    """Leads the gates of a network to a target sparsity in one cost, or in several.

    The loss gains the constraint's penalty of each shortfall, target minus expected
    sparsity, and after every update its multipliers move. Clipping, weight decay and
    loss scaling never see the multipliers.

    All that must be resumed lives in the optimizer, in the gates and in the batch norms.
    From then on the optimizer raises ValueError too: `load_state_dict` for a run that was
    begun with other settings, `step` where multipliers are no finite numbers.

    Args:
        budget: counts the network
        parts: what must meet the targets: budgets by name; that of the whole network
            is named ""
        scheduler: phase and targets as functions of the number of updates
        constraint: penalty and multipliers
        optimizer: trains the gates; keeps the number of updates and the multipliers

    Raises:
        ValueError: targets that the units cannot reach, that contradict each other or
            that new gates have passed already; several for a constraint that takes one
    """

    def __init__(
        self,
        budget: Budget,
        parts: Mapping[str, Budget],
        scheduler: AbsSparsityScheduler,
        constraint: AbsConstraint,
        optimizer: L0AdamW,
    ):
        self.budget, self.scheduler, self.constraint = budget, scheduler, constraint
        self.optimizer, self.parts = optimizer, parts
        if constraint.one_cost and len(scheduler.goal) > 1:
            raise ValueError(
                f"target has {', '.join(scheduler.goal)}, but "
                f"{type(constraint).__name__} holds all gates to one target; expected "
                "one cost, or another sparsity_constraint"
            )
        for part in self.parts.values():
            check_reachable(part, scheduler.goal)
            _check_not_met(part, scheduler.goal)
            if constraint.equality:
                check_compatible(part, scheduler.goal)
        rounding = {(gate.round_to, gate.uniform) for gate in self._gates()}
        self.settings = {
            **scheduler.settings,
            "sparsity_constraint": type(constraint).__name__,
            "sparsity_constraint_conf": vars(constraint),
            "order": optimizer.order,
            "gate_lr": optimizer.pruning["gate_lr"],
            "parts": list(self.parts),
            "budget (scope, seconds, tokens)": budget.totals,
            "round_to and uniform": sorted(rounding),
            "gates": sorted({type(gate).__name__ for gate in self._gates()}),
        }
        names = self._shortfalls()
        optimizer.pruning.update(
            multipliers={name: constraint.start() for name in names},
            settings=self.settings,
            scale=scheduler.scale,
        )
        self._paths = {name: _Path(constraint.equality) for name in names}
        self._announced: str | None = None
        if not scheduler.in_epochs:  # or as soon as an epoch's length is known
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
        """`warmup`, `ramp`, `hold` or `frozen`."""
        return self.scheduler.phase(self.update)

    @property
    def on_budget(self) -> bool:
        """Whether what is there now is what will be cut."""
        return self.phase == "frozen"

    @property
    def _training(self) -> bool:
        return self.phase in ("ramp", "hold")

    @property
    def _moves(self) -> dict[str, bool]:
        """Whether this update moves the weights, and whether the gates."""
        order = self.optimizer.order
        if not self._training:
            return {"weights": True, "gates": False}
        if order == "alternating":
            return {"weights": self.update % 2 == 0, "gates": self.update % 2 == 1}
        return {"weights": order == "joint", "gates": True}

    def begin_epoch(self, updates: int | None, epochs: int, epoch: int = 0) -> None:
        """Fit the schedule to the run, and say so early where it does not fit.

        Args:
            updates: of this epoch; None where that is not known before
            epochs: of the whole run
            epoch: how many were finished before this one

        Raises:
            ValueError: a run that ends before the frozen network was trained at all, or
                that begins with gates of another one; an epoch without an update; a
                schedule in epochs, where their length is not known or another than before
                the run was resumed
        """
        if not self.update and not all(gate.is_new() for gate in self._gates()):
            raise ValueError(
                "the gates come from another run, by init_param, say, so that this one "
                "would not begin with a dense network; expected the weights of a dense "
                "model, or of a cut one with its structure"
            )
        scheduler, state = self.scheduler, self.optimizer.pruning
        self._tell_paths()
        if updates is None:
            if scheduler.in_epochs:
                raise ValueError(
                    "in_epochs is true, but the iterator (multiple_iterator, chunk) has "
                    "epochs of unknown length; expected warmup_steps, ramp_steps and "
                    "hold_steps in updates"
                )
            if not epoch or not self.update:
                self._tell_shortage()
                return
            updates = -(-self.update // epoch)  # the mean of those before, or more
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
            scheduler.fit_(updates)
            state["scale"] = updates
            self._enter_phase()
        needed = scheduler.frozen_begins
        last = self.update + updates * (epochs - epoch)  # some may have been skipped
        if needed >= last:
            enough = epoch + (needed - self.update) // updates + 1
            most = max(last - updates, 1) / scheduler.scale
            raise ValueError(
                f"the gates freeze after {needed} updates (warmup, ramp and hold), and "
                "the frozen network must be trained too, but this run ends after "
                f"{last}: {epochs} epochs of {updates}. Raise max_epoch to "
                f"{enough}, or shorten warmup_steps, ramp_steps and hold_steps to "
                f"{most:g} {'epochs' if scheduler.in_epochs else 'updates'} in all."
            )
        self._tell_shortage()

    def _tell_shortage(self) -> None:
        """Say at the start of a run that its gates have not the time to close."""
        short = shortage(self.scheduler, self._gates(), self.optimizer)
        if short and not self.update:
            logging.warning(short)

    def _tell_paths(self) -> None:
        """Name what did not follow its target since this was last called."""
        for name, path in self._paths.items():
            remedy = path.remedy(self.phase)
            if remedy and self.multipliers[name]:
                logging.warning(f"The expected sparsity in {name} {remedy}")
            self._paths[name] = _Path(self.constraint.equality)

    def check_settings(self, before: Mapping[str, object]) -> None:
        """Raise ValueError for settings that are not those that a run was begun with."""
        changed = [
            f"{name} was {old}, is {self.settings.get(name)}"
            for name, old in before.items()
            if old != self.settings.get(name)
        ]
        if changed:
            raise ValueError(
                f"this run was begun with other settings: {'; '.join(changed)}. Its "
                "phases, targets and multipliers would jump. Resume with the old "
                "settings, or begin with the dense model in a new --output_dir."
            )

    def _resume(self) -> None:
        state = self.optimizer.pruning
        self.check_settings(state["settings"])
        self.scheduler.scale, self._announced = state["scale"], None
        self._enter_phase()

    def _gates(self) -> list[HardConcrete]:
        return list(self.budget.gates.values())

    @property
    def multipliers(self) -> dict[str, Multipliers]:
        """By cost or, of parts, by cost and part."""
        return self.optimizer.pruning["multipliers"]

    def _expected(self) -> Iterator[tuple[str, str, Tensor, Budget]]:
        """Of all that must meet a target: its name, the cost, the expected sparsity, and
        what was counted."""
        for part, budget in self.parts.items():
            expected = budget.expected()
            for cost in self.scheduler.goal:
                name = f"{cost}_{part}" if part else cost
                yield name, cost, expected[cost], budget

    def _shortfalls(self) -> dict[str, Tensor]:
        targets = self.scheduler.targets(self.update)
        return {name: targets[cost] - s for name, cost, s, _ in self._expected()}

    def penalty(self) -> Tensor:
        """The constraints' share of the loss, a scalar in float64; 0 outside of phases
        `ramp` and `hold`."""
        total = torch.zeros((), dtype=torch.float64)
        if not self._training:
            return total
        targets = self.scheduler.targets(self.update)
        for name, cost, expected, budget in self._expected():
            penalty = self.constraint.penalty(
                targets[cost] - expected, self.multipliers[name], budget.log_alpha()
            )
            total = total.to(penalty.device) + penalty
        return total

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """Target, expected and actual sparsity in each cost, and the multipliers.

        By names such as `sparsity_expected_macs` and `lambda1_params`; expected sparsity
        and multipliers of parts by `sparsity_expected_macs_PART` and so on.
        """
        expected = {cost: float(s) for cost, s in self.budget.expected().items()}
        expected |= {name: float(s) for name, _, s, _ in self._expected()}
        found = {
            "sparsity_target": self.scheduler.targets(self.update),
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
        self.optimizer.leave_out(
            *(kind for kind, moves in self._moves.items() if not moves)
        )

    @torch.no_grad()
    def _after_update(self) -> None:
        if self._moves["gates"]:
            for name, shortfall in self._shortfalls().items():
                self.constraint.update_(float(shortfall), self.multipliers[name])
                _check_finite(name, self.multipliers[name])
                self._paths[name].add(float(shortfall))
        self.optimizer.pruning["update"] += 1
        self._enter_phase()

    def _enter_phase(self) -> None:
        """On the way into a phase, tell the gates; into `frozen`, fix them."""
        if self.phase == self._announced:
            return
        for gate in self._gates():
            gate.sampling = self._training
        if self.phase == "frozen":
            self._freeze()
        self._announced = self.phase
        actual = ", ".join(f"{k} {v:.4f}" for k, v in self.budget.actual().items())
        logging.info(
            f"Pruning enters phase {self.phase!r} at update {self.update}: "
            f"{MEANING[self.phase]} (actual sparsity: {actual})"
        )

    def _freeze(self) -> None:
        """Fix the gates, and begin the batch norms' statistics anew: they are of gates
        that were drawn at random."""
        moving = not all(gate.is_decided() for gate in self._gates())
        if moving:
            self._tell_paths()
            plan = select_each(self.parts, self.scheduler.goal)
            decide_(self.budget.sites, plan)
        for norm in batch_norms(site.module for site in self.budget.sites):
            restart_(norm, forget=moving)


class _Path:
    """How the expected sparsity followed its target for a while.

    Args:
        equality: whether more than the target is wrong too
    """

    def __init__(self, equality: bool) -> None:
        self.shortfalls: list[float] = []
        self.equality = equality

    def add(self, shortfall: float) -> None:
        self.shortfalls.append(shortfall if self.equality else max(shortfall, 0.0))

    def remedy(self, phase: str) -> str | None:
        """What was wrong and what helps, if anything was."""
        signs = [v > 0 for v in self.shortfalls]
        crossed = [i for i, (a, b) in enumerate(pairwise(signs), 1) if a != b]
        if len(crossed) > 1:  # how it came to its target is no swing
            largest = max(map(abs, self.shortfalls[crossed[0] :]))
            if largest > OFF_TARGET:
                return (
                    f"swings around its target: it crossed it {len(crossed)} times in "
                    f"{len(signs)} updates, and was up to {largest:.3f} away. Lower "
                    "multiplier_lr in sparsity_constraint_conf."
                )
        last = self.shortfalls[-1] if self.shortfalls else 0.0
        if phase != "ramp" and abs(last) > OFF_TARGET:
            return (
                f"is {last:.3f} from its target, which no longer rises. Raise "
                "multiplier_lr or gate_lr, or lengthen ramp_steps or hold_steps."
            )
        return None


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
            f"the multipliers of {cost} are {multipliers}; expected finite numbers. The "
            "loss or a gradient was none: lower lr in optim_conf."
        )

"""The controller leads the gates to the goal: phases, penalty and multipliers."""

import logging
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from espnet_l0prune.core.batch_norm import batch_norms, restart_
from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.constraints import (
    AbsConstraint,
    AbsPenalty,
    AbsProjection,
    Multipliers,
)
from espnet_l0prune.core.feasibility import check_targets
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.gate_start import start_by_importance_
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.pace import check_milestones, fit_to_run_, pace_of, shortage
from espnet_l0prune.core.phases import AbsSparsityScheduler
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.projected import undecided
from espnet_l0prune.core.selection import select_each
from espnet_l0prune.core.tracking import Tracking, unmet

MANY = 0.05  # gates that are undecided: more deserve a warning
MEANING = {
    "warmup": "the gates are bypassed, the network is dense",
    "ramp": "the gates train, and the target sparsity rises",
    "hold": "the target stands, and the gates settle on it",
    "frozen": "the gates are fixed to 0 or 1, and the weights go on training",
}


class SparsityController:
    """A `SparsityController` leads the gates of a network to a goal.

    A trainer adds `penalty` to its loss and calls the optimizer's `step`, as with any
    other loss and optimizer; the step then makes the update that `update_` describes.
    Before each epoch the trainer calls `begin_epoch`. Clipping, weight decay and loss
    scaling never see the multipliers. All that must be resumed is in the optimizer, the
    gates and the batch norms.

    Args:
        budget: counts the whole network
        parts: the budgets that must meet the targets, by the part's name; the whole
            network is named ""
        goal: what is to be reached
        scheduler: says how the targets rise with the number of updates
        constraint: gives the penalty and moves the multipliers, or moves the gates
        optimizer: trains the gates, and keeps the number of updates and the multipliers

    Raises:
        ValueError: targets that the units cannot reach, that contradict each other or
            that new gates meet already, in the end or at a milestone; several targets for
            a constraint that takes one
    """

    def __init__(
        self,
        budget: Budget,
        parts: Mapping[str, Budget],
        goal: Goal,
        scheduler: AbsSparsityScheduler,
        constraint: AbsConstraint,
        optimizer: L0AdamW,
    ):
        self.budget, self.parts, self.goal = budget, parts, goal
        self.scheduler, self.constraint = scheduler, constraint
        self.optimizer = optimizer
        targets = goal.targets
        scheduler.check_final(targets)
        if constraint.one_cost and len(targets) > 1:
            raise ValueError(
                f"target has {', '.join(targets)}, but "
                f"{type(constraint).__name__} holds all gates to one target; expected "
                "one cost, or another sparsity_constraint"
            )
        for part in parts.values():
            for station in scheduler.stations(targets):
                check_targets(part, station, constraint.equality)
        progress = optimizer.progress
        progress.settings, progress.scale = self.settings, scheduler.scale
        names = [name for name, *_ in self._expected()]
        progress.multipliers = {name: constraint.start() for name in names}
        self._tracking = {name: Tracking(constraint.equality) for name in names}
        self._announced: str | None = None
        if not scheduler.in_epochs:  # otherwise once an epoch's length is known
            self._enter_phase()
        optimizer.controller = self

    @torch.no_grad()
    def update_(self) -> None:
        """Make one update of a constrained training (Jiang et al. 2023, arXiv 2305.19549,
        section 2.2, with multipliers that move in closed form).

        Before it, a forward has drawn the gates, the loss has gained `penalty`, and a
        backward has computed the gradients, as often as the trainer accumulates them.
        """
        progress, constraint = self.optimizer.progress, self.constraint
        moves, measures = self._moves, self._measures
        targets = self.scheduler.targets(progress.update, self.goal.targets)
        following = self.scheduler.targets(progress.update + 1, self.goal.targets)
        projects = isinstance(constraint, AbsProjection)
        self.optimizer.move_(
            weights=moves["weights"],
            gates=moves["gates"] or measures,
            gate_lr=0.0 if projects or measures else None,
        )
        progress.update += 1
        if measures and self._training:
            for budget in self.parts.values():
                start_by_importance_(budget, self.optimizer, self.goal.targets)
        if moves["gates"] and isinstance(constraint, AbsPenalty):
            for name, cost, expected, _ in self._expected():
                shortfall = targets[cost] - float(expected)
                constraint.update_(shortfall, progress.multipliers[name])
                _check_finite(name, progress.multipliers[name])
                self._tracking[name].add(shortfall)
        if moves["gates"] and isinstance(constraint, AbsProjection):
            pace = pace_of(self.scheduler, progress.update, self._gates(), self.optimizer)
            for part, budget in self.parts.items():
                multipliers = {c: progress.multipliers[_named(c, part)] for c in targets}
                constraint.step_(budget, following, multipliers, self.optimizer, pace)
        self._enter_phase()

    def penalty(self) -> Tensor:
        """Return what the constraints add to the loss, a scalar in float64.

        It is 0 in phases other than `ramp` and `hold`, and of a projection.
        """
        total = torch.zeros((), dtype=torch.float64)
        if not self._training or not isinstance(self.constraint, AbsPenalty):
            return total
        targets = self.scheduler.targets(self.update, self.goal.targets)
        for name, cost, expected, budget in self._expected():
            penalty = self.constraint.penalty(
                targets[cost] - expected, self.multipliers[name], budget.log_alpha()
            )
            total = total.to(penalty.device) + penalty
        return total

    @property
    def update(self) -> int:
        """Return how many updates have been made."""
        return self.optimizer.progress.update

    @property
    def phase(self) -> str:
        """Return the current phase: `warmup`, `ramp`, `hold` or `frozen`."""
        return self.scheduler.phase(self.update)

    @property
    def on_budget(self) -> bool:
        """Return whether the gates have been fixed, so that a cut changes no output."""
        return self.phase == "frozen"

    @property
    def multipliers(self) -> dict[str, Multipliers]:
        """Return the multipliers by cost, or by names such as `params_PART`."""
        return self.optimizer.progress.multipliers

    @property
    def settings(self) -> dict[str, object]:
        """Return what a resumed run must have in common with its beginning."""
        rounding = {(gate.round_to, gate.uniform) for gate in self._gates()}
        return {
            **self.scheduler.settings,
            "target": self.goal.targets,
            "sparsity_constraint": type(self.constraint).__name__,
            "sparsity_constraint_conf": vars(self.constraint),
            "order": self.optimizer.order,
            "gate_lr": self.optimizer.gate_lr,
            "parts": list(self.parts),
            "budget (scope, seconds, tokens)": self.budget.totals,
            "round_to and uniform": sorted(rounding),
            "gates": sorted({type(gate).__name__ for gate in self._gates()}),
        }

    @property
    def _training(self) -> bool:
        return self.phase in ("ramp", "hold")

    @property
    def _measures(self) -> bool:
        """Return whether this update measures what the gates start from."""
        return self.scheduler.gate_start is not None and self.phase == "warmup"

    @property
    def _moves(self) -> dict[str, bool]:
        """Return whether this update moves the weights, and whether the gates."""
        order = self.optimizer.order
        if not self._training:
            return {"weights": True, "gates": False}
        if order == "alternating":
            return {"weights": self.update % 2 == 0, "gates": self.update % 2 == 1}
        return {"weights": order == "joint", "gates": True}

    def _gates(self) -> list[HardConcrete]:
        return list(self.budget.gates.values())

    def _expected(self) -> Iterator[tuple[str, str, Tensor, Budget]]:
        """Yield name, cost, expected sparsity and budget of each target."""
        for part, budget in self.parts.items():
            expected = budget.expected()
            for cost in self.goal.targets:
                yield _named(cost, part), cost, expected[cost], budget

    def begin_epoch(self, updates: int | None, epochs: int, epoch: int = 0) -> None:
        """Fit the schedule to the run, and say early where it does not fit.

        Args:
            updates: number of updates in this epoch; None where it is not known
                beforehand
            epochs: number of epochs in the whole run
            epoch: number of epochs finished before this one

        Raises:
            ValueError: a run that begins with the gates of another one; see also
                `fit_to_run_`
        """
        if not self.update and not all(gate.is_new() for gate in self._gates()):
            raise ValueError(
                "the gates come from another run, by init_param, say, so that this one "
                "would not begin with a dense network; expected the weights of a dense "
                "model, or of a cut one with its structure"
            )
        self.tell_remedies()
        penalizes = isinstance(self.constraint, AbsPenalty)
        if self.phase == "hold" and penalizes:
            self._tell_undecided()
        fit_to_run_(self.scheduler, self.optimizer.progress, updates, epochs, epoch)
        if self.scheduler.in_epochs:
            self._enter_phase()
        gated = self.scheduler, self._gates(), self.optimizer
        check_milestones(*gated, projects=not penalizes)
        short = shortage(*gated)
        if penalizes and not self.update and short:
            logging.warning(short)

    def tell_remedies(self) -> None:
        """Warn of what left its target since the last call, and name the remedy."""
        held = self.update > 1 and self.scheduler.phase(self.update - 2) == "hold"
        if isinstance(self.constraint, AbsProjection) and held:
            self._tell_unmet()
        for name, tracking in self._tracking.items():
            remedy = tracking.remedy(self.phase)
            if remedy and self.multipliers[name]:  # a price has none
                logging.warning(f"The expected sparsity in {name} {remedy}")
            self._tracking[name] = Tracking(self.constraint.equality)

    @torch.no_grad()
    def _tell_unmet(self) -> None:
        """Warn of targets that stand, and that a projection does not meet."""
        if all(gate.is_decided() for gate in self._gates()):
            return
        targets = self.scheduler.targets(self.update, self.goal.targets)
        for name, cost, expected, _ in self._expected():
            remedy = unmet(targets[cost] - float(expected))
            if remedy:
                logging.warning(f"The expected sparsity in {name} {remedy}")

    def _tell_undecided(self) -> None:
        """Warn of gates that may as well be open as closed, if there are many."""
        share = undecided(self.budget)
        if share > MANY:
            remedy = "Raise hold_steps"
            if isinstance(self.constraint, AbsPenalty):
                remedy += ", or take sparsity_constraint: projected, which decides them"
            logging.warning(
                f"{share:.1%} of the gates are undecided: they are open with a "
                "probability between 0.1 and 0.9. To fix them changes the network. "
                f"{remedy}."
            )

    def plan(self) -> Plan:
        """Return which units stay if the gates are fixed now, at the present targets."""
        targets = self.scheduler.targets(self.update, self.goal.targets)
        return select_each(self.parts, targets, self.constraint.equality)

    def check_settings(self, before: Mapping[str, object]) -> None:
        """Raise ValueError for settings other than those at the run's beginning."""
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

    def resume_(self) -> None:
        """Go on from the progress that the optimizer has loaded."""
        self.scheduler.scale, self._announced = self.optimizer.progress.scale, None
        self._enter_phase()

    @torch.no_grad()
    def report(self) -> dict[str, float]:
        """Return target, expected and actual sparsity in each cost, and the multipliers.

        `gates_undecided` is the share of gates that may as well be open as closed. The
        names of the others are such as `sparsity_expected_macs` and `lambda1_params`;
        where parts must meet the targets, such as `sparsity_expected_macs_PART` and
        `lambda1_params_PART`.
        """
        expected = {cost: float(s) for cost, s in self.budget.expected().items()}
        expected |= {name: float(s) for name, _, s, _ in self._expected()}
        by_name = {
            "sparsity_target": self.scheduler.targets(self.update, self.goal.targets),
            "sparsity_expected": expected,
            "sparsity_actual": self.budget.actual(),
        }
        for cost, multipliers in self.multipliers.items():
            for name, value in multipliers.items():
                by_name.setdefault(name, {})[cost] = value
        return {
            "gates_undecided": undecided(self.budget),
            **{
                f"{name}_{cost}": value
                for name, costs in by_name.items()
                for cost, value in costs.items()
            },
        }

    def _enter_phase(self) -> None:
        """Set up the gates on the way into a phase; fix them on the way into `frozen`."""
        if self.phase == self._announced:
            return
        for gate in self._gates():
            gate.sampling, gate.measuring = self._training, self._measures
        if self.phase == "frozen":
            self._freeze()
        self._announced = self.phase
        actual = ", ".join(f"{k} {v:.4f}" for k, v in self.budget.actual().items())
        logging.info(
            f"Pruning enters phase {self.phase!r} at update {self.update}: "
            f"{MEANING[self.phase]} (actual sparsity: {actual})"
        )

    def _freeze(self) -> None:
        """Fix the gates; restart the batch norms if these saw gates drawn at random."""
        moving = not all(gate.is_decided() for gate in self._gates())
        if moving:
            self.tell_remedies()
            self._tell_undecided()
            decide_(self.budget.sites, self.plan())
        for norm in batch_norms(site.module for site in self.budget.sites):
            restart_(norm, forget=moving)


def _named(cost: str, part: str) -> str:
    """Return the name of one target's multipliers and figures."""
    return f"{cost}_{part}" if part else cost


def _check_finite(cost: str, multipliers: Multipliers) -> None:
    if not all(math.isfinite(value) for value in multipliers.values()):
        raise ValueError(
            f"the multipliers of {cost} are {multipliers}; expected finite numbers. The "
            "loss or a gradient was none: lower lr in optim_conf."
        )

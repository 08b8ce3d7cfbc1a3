"""This says how far a pruning is: what was asked of it, and what it has reached."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.reading import read_json
from espnet_l0prune.deploy.inspect import Inspection
from espnet_l0prune.plugin.options import is_pruned, make_goal, make_scheduler
from espnet_l0prune.report.history import Epoch
from espnet_l0prune.report.values import amounts


@dataclass(frozen=True)
class Pruning:
    """A `Pruning` holds sparsities by cost, as shares of the scope's costs.

    Attributes:
        scope: `encoder`, `decoder` or `model`
        asked: the targets in the end
        actual: what a cut would remove now, or has removed
        phase: the schedule's present phase; None for a cut, and before the first epoch
            has ended
        target: the present targets, if there is a phase
    """

    scope: str
    asked: dict[str, float]
    actual: dict[str, float]
    phase: str | None = None
    target: dict[str, float] | None = None


def read_pruning(
    folder: Path,
    args: argparse.Namespace,
    history: Sequence[Epoch],
    inspection: Inspection | None,
) -> Pruning | None:
    """Return how far a pruned or a cut experiment is; None for any other.

    Args:
        folder: the experiment's folder
        args: the experiment's configuration
        history: its epochs so far
        inspection: what is left of its model, if that could be counted

    Raises:
        ValueError: options of the schedule, or a cut.json, that are damaged
    """
    if not is_pruned(args):
        file = folder / "cut.json"
        return _read_cut(file) if file.exists() else None
    scheduler, goal = make_scheduler(args), make_goal(args)
    actual = dict(inspection.actual_sparsity) if inspection is not None else {}
    if not history:
        return Pruning(goal.scope, goal.targets, actual)
    last = history[-1]
    for cost in COSTS:
        if f"sparsity_actual_{cost}" in last.valid:
            actual.setdefault(cost, last.valid[f"sparsity_actual_{cost}"])
    if scheduler.in_epochs:
        scheduler.scale = max(last.update // last.number, 1)
    phase = scheduler.phase(last.update)
    target = scheduler.targets(last.update, goal.targets)
    return Pruning(goal.scope, goal.targets, actual, phase, target)


def _read_cut(file: Path) -> Pruning:
    """Read what `cut` noted."""
    try:
        report = read_json(file)
        return Pruning(
            str(report["scope"]), amounts(report["target"]), amounts(report["sparsity"])
        )
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
            f"{file} cannot be read ({type(e).__name__}: {e}); expected what "
            "`espnet-l0prune cut` writes"
        ) from e

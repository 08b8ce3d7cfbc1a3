"""How far a pruning is: what it was asked for, and what it has reached."""

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
    """Sparsities by cost, as shares of the scope's.

    Attributes:
        scope: `encoder`, `decoder` or `model`
        asked: the target in the end
        actual: what a cut would leave out now, or has left out
        phase: of the schedule, now; None where it was cut, or no epoch has ended yet
        target: of now, where there is a phase
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
    """Of an experiment with a schedule, or with the cut.json of a cut; None without both.

    Args:
        args: the experiment's configuration

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
    """What `cut` noted."""
    try:
        found = read_json(file)
        return Pruning(
            str(found["scope"]), amounts(found["target"]), amounts(found["sparsity"])
        )
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
            f"{file} cannot be read ({type(e).__name__}: {e}); expected what "
            "`espnet-l0prune cut` writes"
        ) from e

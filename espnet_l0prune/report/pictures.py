"""The pictures of a report: structures, sparsities, losses, and errors against costs."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from espnet_l0prune.core.goal import NETWORKS
from espnet_l0prune.deploy.inspect import Inspection
from espnet_l0prune.plugin.structure_plot import grid, structure_figure
from espnet_l0prune.report import curves
from espnet_l0prune.report.results import Result
from espnet_l0prune.report.run import Run


@dataclass(frozen=True)
class Picture:
    """A `Picture` is a figure, with the name of its files and what it shows."""

    figure: Figure
    name: str
    caption: str


def has_structure(inspection: Inspection) -> bool:
    """Return whether units were cut, or have gates."""
    return inspection.scope is not None or inspection.is_cut


def structures(runs: Sequence[Run]) -> Iterator[Picture]:
    """Yield a heat map of each pruned network; runs with the same units share one."""
    same: dict[str, tuple[Inspection, list[str]]] = {}
    for run in runs:
        if run.inspection is not None and has_structure(run.inspection):
            key = repr([(row.module, row.units) for row in run.inspection.rows])
            same.setdefault(key, (run.inspection, []))[1].append(run.name)
    for inspection, names in same.values():
        modules = {row.module: row.units for row in inspection.rows}
        for network in NETWORKS:
            cells = itertools.chain(*grid(modules, network).values())
            shares = [cell[0] for cell in cells if cell]
            if not shares or (network != "encoder" and min(shares) == 1):
                continue
            figure = structure_figure(modules, network)
            parameters = inspection.amounts["params"][network]
            caption = (
                f"{', '.join(names)}: {network}, {parameters:,} parameters. Units left "
                "of those before; dark is all, light is nothing."
            )
            yield Picture(figure, f"structure_{names[0]}_{network}", caption)


def sparsities(runs: Sequence[Run]) -> Iterator[Picture]:
    """Yield pictures of the sparsity in each cost and of each multiplier, of all runs."""
    pruning = [run for run in runs if run.costs]
    for cost in dict.fromkeys(cost for run in pruning for cost in run.costs):
        figure = Figure()
        some = [run for run in pruning if cost in run.costs]
        curves.draw_sparsity(figure.subplots(), some, cost)
        caption = f"Sparsity in {cost}; a cut would have the actual one."
        yield Picture(figure, f"sparsity_{cost}", caption)
    for name in dict.fromkeys(name for run in pruning for name in run.multipliers):
        figure = Figure()
        some = [run for run in pruning if name in run.multipliers]
        curves.draw_multiplier(figure.subplots(), some, name)
        yield Picture(figure, f"multiplier_{name}", f"The constraint's {name}.")


def losses(runs: Sequence[Run]) -> Iterator[Picture]:
    """Yield a picture of the losses of each run."""
    for run in runs:
        if run.history:
            figure = Figure()
            curves.draw_losses(figure.subplots(), run)
            minutes = sum(epoch.seconds for epoch in run.history) / 60
            caption = f"{run.name}: {len(run.history)} epochs in {minutes:,.0f} minutes."
            yield Picture(figure, f"losses_{run.name}", caption)


def sizes(runs: Sequence[Run]) -> Iterator[Picture]:
    """Yield a picture of the errors of models of several sizes against each cost.

    Those of the validation are taken, of models without gates, if one of several was cut.
    """
    some = [
        run
        for run in runs
        if run.history and run.inspection is not None and run.inspection.scope is None
    ]
    cut = [run.inspection.is_cut for run in some if run.inspection is not None]
    for figure, (label, *_) in curves.VALIDATED.items():
        known = all(curves.best_error(run, figure) is not None for run in some)
        if len(some) < 2 or not any(cut) or not known:
            continue
        for cost, (of, _) in curves.AMOUNTS.items():
            drawn = Figure()
            curves.draw_sizes(drawn.subplots(), some, figure, cost)
            caption = (
                f"{label[0].upper()}{label[1:]} of the best epoch's validation, against "
                f"{of}; the star has not been cut."
            )
            yield Picture(drawn, f"validation_{cost}", caption)
        return  # the first figure that all have


def costs(results: Sequence[Result]) -> Iterator[Picture]:
    """Yield a picture of the errors against each cost that is known for a model."""
    some = [result for result in results if result.wer]
    for cost, (label, _) in curves.MEASURES.items():
        if all(getattr(result, cost) is None for result in some):
            continue
        figure = Figure()
        curves.draw_costs(figure.subplots(), some, cost)
        yield Picture(figure, f"wer_{cost}", f"WER against {label}; the star is dense.")

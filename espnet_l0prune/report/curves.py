"""These curves show a training, and what models cost against their errors."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from espnet_l0prune.report.results import Result
from espnet_l0prune.report.run import Run

# Okabe and Ito's colours, which colour-blind readers can tell apart, and marks for print:
# one more mark than colours, so that 42 models look different
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
LINES = {"target": ":", "expected": "--", "actual": "-"}
LOSSES = {
    "loss_layer": "layers",
    "loss_ctc_kl": "CTC KL",
    "loss_att_kl": "attention KL",
    "loss_transducer_kl": "transducer KL",
    "loss_sparsity": "sparsity",
}


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def mark(i: int) -> str:
    return MARKS[i % len(MARKS)]


def updates(run: Run) -> list[int]:
    return [epoch.update for epoch in run.history]


def draw_sparsity(axes: Axes, runs: Sequence[Run], cost: str) -> None:
    """Draw target, expected and actual sparsity in a cost after each epoch."""
    for i, run in enumerate(runs):
        for what, line in LINES.items():
            name = f"sparsity_{what}_{cost}"
            values = [epoch.valid.get(name, math.nan) for epoch in run.history]
            shown = mark(i) if what == "actual" and len(runs) > 1 else None
            look: dict[str, Any] = {"color": colour(i), "marker": shown, "markersize": 4}
            axes.plot(updates(run), values, line, **look)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("updates")
    axes.set_ylabel(f"sparsity in {cost}")
    black = axes.xaxis.label.get_color()
    handles = [Line2D([], [], color=black, ls=ls, label=w) for w, ls in LINES.items()]
    _legend(axes, [*handles, *names_of(runs)])


def _legend(axes: Axes, handles: Sequence[Artist] = ()) -> None:
    """Draw a legend above the curves, where it hides none of them.

    Without handles, it is of all curves that have a label.
    """
    handles = handles or axes.get_legend_handles_labels()[0]
    if handles:
        axes.figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=min(len(handles), 3),
            fontsize="small",
            frameon=False,
        )


def names_of(runs: Sequence[Run]) -> list[Line2D]:
    """Return the handles of a legend of the runs, if there are several."""
    if len(runs) == 1:
        return []
    return [
        Line2D([], [], color=colour(i), marker=mark(i), label=run.name)
        for i, run in enumerate(runs)
    ]


def draw_multiplier(axes: Axes, runs: Sequence[Run], multiplier: str) -> None:
    """Draw a multiplier for each cost, and for each part that has its own."""
    for i, run in enumerate(runs):
        for j, cost in enumerate(run.costs):
            prefix, style = f"{multiplier}_{cost}", ("-", "--", ":")[j % 3]
            names = dict.fromkeys(name for epoch in run.history for name in epoch.valid)
            parts = [name for name in names if name.startswith(prefix)]
            for k, name in enumerate(parts):
                values = [epoch.valid.get(name, math.nan) for epoch in run.history]
                label = f"{run.name}, {cost}" if len(runs) > 1 else cost
                label = "_of another part" if k else label  # matplotlib hides it
                axes.plot(updates(run), values, style, color=colour(i), label=label)
    axes.set_xlabel("updates")
    axes.set_ylabel(multiplier)
    _legend(axes)


class _PlainFormatter(LogFormatter):
    """This formatter writes plain numbers: the page renders no mathematical text."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def draw_losses(axes: Axes, run: Run) -> None:
    """Draw the parts of the training loss, and the task loss of the validation."""
    ours = any("loss_task" in epoch.train for epoch in run.history)
    task = "loss_task" if ours else "loss"
    for i, (name, label) in enumerate({task: "task", **LOSSES}.items()):
        values = [epoch.train.get(name, math.nan) for epoch in run.history]
        if any(value > 0 for value in values):
            positive = [value if value > 0 else math.nan for value in values]
            axes.plot(
                updates(run),
                positive,
                f"{mark(i)}-",
                color=colour(i),
                markersize=3,
                label=label,
            )
    values = [epoch.valid.get(task, math.nan) for epoch in run.history]
    black = axes.xaxis.label.get_color()
    axes.plot(updates(run), values, "--", color=black, label="task, validation")
    if any(np.nanmax(line.get_ydata(), initial=0) > 0 for line in axes.lines):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_PlainFormatter())
        axes.yaxis.set_minor_formatter(_PlainFormatter(minor_thresholds=(2, 0.4)))
    axes.set_xlabel("updates")
    axes.set_ylabel("loss")
    _legend(axes)


VALIDATED = {  # figures of a validation, and how each becomes an error in percent
    "acc": ("next-token error (%)", -100.0, 100.0),
    "cer_ctc": ("CER of the CTC (%)", 100.0, 0.0),
}
AMOUNTS = {
    "params": ("parameters of the model (M)", 1e-6),
    "macs": ("MACs of the model (G)", 1e-9),
}


def best_error(run: Run, figure: str) -> float | None:
    """Return the least error in any of a run's validations, in percent.

    Args:
        run: the run
        figure: a key of `VALIDATED`; None is returned where no validation has it
    """
    _, factor, offset = VALIDATED[figure]
    values = [epoch.valid[figure] for epoch in run.history if figure in epoch.valid]
    return min((offset + factor * value for value in values), default=None)


def draw_sizes(axes: Axes, runs: Sequence[Run], figure: str, cost: str) -> None:
    """Draw the least error of each run against what its model costs.

    A line leads from size to size; a star is a model that has not been cut.

    Args:
        axes: where to draw
        runs: runs with an inspection and the figure
        figure: a key of `VALIDATED`
        cost: a key of `AMOUNTS`
    """
    label, scale = AMOUNTS[cost]
    points = []
    for i, run in enumerate(runs):
        error = best_error(run, figure)
        if run.inspection is None or error is None:
            continue
        amount = scale * run.inspection.amounts[cost]["model"]
        points.append((amount, error))
        axes.plot(
            amount,
            error,
            mark(i) if run.inspection.is_cut else "*",
            markersize=8 if run.inspection.is_cut else 14,
            color=colour(i),
            linestyle="none",
            label=run.name,
        )
    black = axes.xaxis.label.get_color()
    amounts, errors = zip(*sorted(points), strict=True)
    axes.plot(amounts, errors, color=black, linewidth=0.8, zorder=0)
    axes.set_xlim(0, 1.15 * max(amounts))
    axes.set_ylim(0, 1.3 * max(errors) or 1)
    axes.set_xlabel(label)
    axes.set_ylabel(VALIDATED[figure][0])
    _legend(axes)


MEASURES = {
    "encoder_parameters": ("parameters of the encoder (M)", 1e-6),
    "macs": ("MACs of the encoder (G)", 1e-9),
    "rtf": ("real-time factor of the encoder", 1.0),
}


def draw_costs(axes: Axes, results: Sequence[Result], cost: str) -> None:
    """Draw word error rates against a cost, one of `MEASURES`; a star is the dense model.

    Models without one of the two are left out.
    """
    label, scale = MEASURES[cost]
    costs, rates = [], []
    for i, result in enumerate(results):
        value, rate = getattr(result, cost), result.mean_wer
        if value is None or rate is None:
            continue
        costs.append(scale * value)
        rates.append(100 * rate)
        axes.plot(
            costs[-1:],
            rates[-1:],
            "*" if result.is_dense else mark(i),
            markersize=14 if result.is_dense else 8,
            color=colour(i),
            linestyle="none",
            label=result.name,
        )
    axes.set_xlim(0, 1.15 * max(costs, default=0) or 1)
    axes.set_ylim(0, 1.3 * max(rates, default=0) or 1)
    axes.set_xlabel(label)
    axes.set_ylabel("WER (%)")
    _legend(axes)

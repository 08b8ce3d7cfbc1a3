"""Headlines say what a reader asks first: what was asked, reached, spent and saved."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.report.results import Result, results_file
from espnet_l0prune.report.run import Run
from espnet_l0prune.report.values import count


def headlines(runs: Sequence[Run], decoded: Mapping[Path, Sequence[Result]]) -> list[str]:
    """Return a line for each pruned experiment, and for each model beside a dense one.

    Experiments have a line if they are under way or pruned; models, if they were decoded
    beside a dense model. Where there is one line of each, they are joined. What is not
    known is left out.

    Args:
        runs: the experiments
        decoded: the models that were decoded, by the file of their results
    """
    lines = []
    files = [results_file(run.folder) for run in runs]
    for file in dict.fromkeys(files):
        same: dict[str, list[str]] = {}
        for run, its_file in zip(runs, files, strict=True):
            if its_file == file and (text := standing(run)):
                same.setdefault(text, []).append(run.name)
        prunings = [f"{', '.join(names)}: {text}" for text, names in same.items()]
        models = decoded.get(file, ()) if file else ()
        pairs = [(a, b) for a in models if a.is_dense for b in models if b is not a]
        if len(prunings) == 1 and len(pairs) == 1:
            lines.append("; ".join([*prunings, *effects(*pairs[0])]))
            continue
        lines += prunings
        for dense, model in pairs:
            if parts := [*savings(dense, model), *effects(dense, model)]:
                lines.append(f"{model.name} beside {dense.name}: {'; '.join(parts)}")
    return lines


def standing(run: Run) -> str:
    """Return how far an experiment is; nothing if it neither runs nor prunes."""
    parts = []
    pruning, epochs = run.pruning, count(run.config.get("max_epoch"))
    done = run.history[-1].number if run.history else 0
    phase = pruning.phase if pruning else None
    if done and (done < (epochs or 0) or phase not in (None, "frozen")):
        of, now = f" of {epochs}" if epochs else "", f", phase {phase}" if phase else ""
        parts.append(f"epoch {done}{of}{now}")
    if pruning is not None:
        parts.append(f"asked to remove {shares(pruning.asked)} of the {pruning.scope}")
        settled = phase in (None, "frozen")
        if pruning.target and not settled:
            parts.append(f"the target now is {shares(pruning.target)}")
        if pruning.actual:
            what = "removed" if settled else "a cut would now remove"
            parts.append(f"{what} {shares(pruning.actual)}")
    return "; ".join(parts)


def shares(values: Mapping[str, float]) -> str:
    """Return sparsities by cost in words."""
    known = [
        f"{values[name]:.1%} of the {cost.label}"
        for name, cost in COSTS.items()
        if name in values
    ]
    return " and ".join(known)


def savings(dense: Result, model: Result) -> list[str]:
    """Return what was removed from the encoder."""
    pairs = {
        "params": (dense.encoder_parameters, model.encoder_parameters),
        "macs": (dense.macs, model.macs),
    }
    gone = {c: 1 - b / a for c, (a, b) in pairs.items() if a and b is not None}
    return [f"removed {shares(gone)} of the encoder"] if gone else []


def effects(dense: Result, model: Result) -> list[str]:
    """Return what pruning costs in errors, and what it saves in time."""
    parts = []
    tests = [test for test in dense.wer if test in model.wer]
    if tests:
        before, after = (
            sum(r.wer[t] for t in tests) / len(tests) for r in (dense, model)
        )
        mean = "WER" if len(tests) == 1 else f"mean WER of {len(tests)} sets"
        points = f"{100 * (after - before):+.2f} points"
        parts.append(f"{mean} {before:.2%} -> {after:.2%} ({points})")
    if dense.rtf and model.rtf is not None:
        ratio = model.rtf / dense.rtf
        change = f"{abs(1 - ratio):.0%} {'less' if ratio <= 1 else 'more'} time"
        parts.append(f"encoder RTF {dense.rtf:.4f} -> {model.rtf:.4f} ({change})")
    return parts

"""An experiment as a report shows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from espnet_l0prune.core.constraints import CONSTRAINTS
from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.text import plain
from espnet_l0prune.deploy.inspect import Inspection, inspect_experiment
from espnet_l0prune.plugin.experiment import last_of, read_config
from espnet_l0prune.plugin.options import PRUNING_OPTIONS
from espnet_l0prune.report.history import Epoch, read_history
from espnet_l0prune.report.pruning import Pruning, read_pruning
from espnet_l0prune.report.values import count

T = TypeVar("T")

OPTIONS = (  # of a configuration: what a reader asks first
    "encoder",
    "encoder_conf",
    "decoder",
    "decoder_conf",
    "model",
    "model_conf",
    "optim",
    "optim_conf",
    "scheduler",
    "scheduler_conf",
    *PRUNING_OPTIONS,
    "max_epoch",
    "batch_type",
    "batch_bins",
    "accum_grad",
    "seed",
    "train_dtype",
    "use_amp",
    "ngpu",
    "version",
)


@dataclass
class Run:
    """What the files of an experiment's folder say.

    Attributes:
        name: to tell it from the others of a report
        config: options that a reader asks for, by name
        history: of its training, as far as it has come
        inspection: module by module; None before the first checkpoint
        multipliers: names of the constraint's
        pruning: how far it is, where it prunes or was cut
        problems: why something could not be read
    """

    name: str
    folder: Path
    config: dict[str, object]
    history: list[Epoch]
    inspection: Inspection | None
    multipliers: list[str]
    pruning: Pruning | None
    problems: list[str]

    @property
    def costs(self) -> list[str]:
        """Those with a target."""
        names = {name for epoch in self.history for name in epoch.train}
        return [cost for cost in COSTS if f"sparsity_target_{cost}" in names]


def read_run(folder: Path, name: str) -> Run:
    """Read an experiment's folder. What is damaged in it, or cannot be counted, is no
    error: the reason is noted.

    Raises:
        ValueError: a configuration that is missing or damaged
    """
    args = read_config(folder / "config.yaml")
    options = {k: getattr(args, k, None) for k in OPTIONS}
    checkpoint, problems = folder / last_of(folder), []

    def attempt(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (ValueError, ImportError) as e:  # they say what is wrong
            problems.append(str(e))
        except Exception as e:  # whatever a damaged configuration makes of ESPnet and us
            problems.append(f"{what} cannot be told ({type(e).__name__}: {e})")
        return otherwise

    accum_grad = count(getattr(args, "accum_grad", 1))
    if accum_grad is None:
        problems.append("config.yaml has no accum_grad from 1 on: shown as if it were 1")
    nothing: tuple[list[Epoch], list[str]] = ([], [])
    history, missing = attempt(
        "the history", lambda: read_history(folder, accum_grad or 1), nothing
    )
    problems += missing
    inspection = None
    if checkpoint.exists():
        inspection = attempt(
            "what is left",
            lambda: inspect_experiment(folder, checkpoint.name),
            inspection,
        )
    pruning = attempt(
        "the schedule", lambda: read_pruning(folder, args, history, inspection), None
    )
    constraint = CONSTRAINTS.get(str(getattr(args, "sparsity_constraint", None)))
    return Run(
        name=plain(name),
        folder=folder,
        config={k: v for k, v in options.items() if v not in (None, {}, [])},
        history=history,
        inspection=inspection,
        multipliers=[] if constraint is None else list(constraint().start()),
        pruning=pruning,
        problems=problems,
    )


def find_runs(folders: list[Path]) -> tuple[dict[str, Path], list[str]]:
    """The experiments in these folders by name: of a folder without config.yaml, all in
    it that are recognizers and were trained or cut. And which were skipped, and why.

    Raises:
        ValueError: a folder without any
    """
    found: list[Path] = []
    skipped: list[str] = []
    for folder in folders:
        if (folder / "config.yaml").exists():
            found.append(folder)
            continue
        inside, problems = [], []
        for trained in sorted({file.parent for file in folder.glob("*/*.pth")}):
            try:
                args = read_config(trained / "config.yaml")
            except ValueError as e:
                problems.append(f"{trained.name} is left out: {e}")
                continue
            if hasattr(args, "encoder"):  # no language model's
                inside.append(trained)
        if not inside:
            raise ValueError(
                f"{folder} has no config.yaml, and no folder in it is an experiment of a "
                "recognizer with a checkpoint; expected an experiment, or a folder of "
                f"experiments{''.join(f'. {problem}' for problem in problems)}"
            )
        found += inside
        skipped += problems
    each = {folder.resolve(): folder for folder in found}
    return dict(zip(distinct_names([*each]), each.values(), strict=True)), skipped


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of different paths by which they can be told apart."""

    def end(path: Path, length: int) -> str:
        return "/".join(path.parts[-length:])

    names = []
    for path in paths:
        length = 1
        while sum(end(other, length) == end(path, length) for other in paths) > 1:
            length += 1
        names.append(end(path, length))
    return names

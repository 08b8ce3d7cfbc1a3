"""A run is an experiment as a report shows it."""

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

OPTIONS = (  # the options that a reader asks for first
    "frontend",
    "frontend_conf",
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
# ESPnet3 has these of its own; the others of that name are defaults
OF_ESPNET2 = (
    *("optim", "optim_conf", "scheduler_conf", "batch_type", "batch_bins", "accum_grad"),
    *("train_dtype", "use_amp", "ngpu"),
)
OF_ESPNET3 = ("optimizer", "dataloader", "trainer", "num_device")


@dataclass
class Run:
    """A `Run` holds what the files in an experiment's folder say.

    Attributes:
        name: a name that tells it from the report's other runs
        folder: the experiment's folder
        config: the options that a reader asks for, by name
        history: the epochs of its training so far
        inspection: what is left of each module; None before the first checkpoint
        multipliers: names of the constraint's multipliers
        pruning: how far it is, if it prunes or was cut
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
        """Return the costs that have a target."""
        names = {name for epoch in self.history for name in epoch.train}
        return [cost for cost in COSTS if f"sparsity_target_{cost}" in names]


def read_run(folder: Path, name: str) -> Run:
    """Read an experiment's folder.

    Files that are damaged, and models that cannot be counted, are not errors: the reason
    is noted.

    Args:
        folder: the experiment's folder
        name: a name that tells it from the report's other runs

    Raises:
        ValueError: a configuration that is missing or damaged
    """
    args = read_config(folder / "config.yaml")
    options = {k: getattr(args, k, None) for k in OPTIONS}
    if isinstance(trainer := getattr(args, "trainer", None), dict):  # ESPnet3's
        options = {k: v for k, v in options.items() if k not in OF_ESPNET2}
        options |= {k: getattr(args, k, None) for k in OF_ESPNET3}
        options["max_epoch"] = trainer.get("max_epochs")
    checkpoint, problems = folder / last_of(folder), []

    def attempt(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (ValueError, ImportError) as e:  # their messages say what is wrong
            problems.append(str(e))
        except Exception as e:  # a damaged configuration may cause any error
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
    """Return the experiments in some folders by name, and which were left out and why.

    A folder without config.yaml stands for all recognizers in it that were trained or
    cut.

    Args:
        folders: experiments, or folders of experiments

    Raises:
        ValueError: a folder without any experiment
    """
    experiments: list[Path] = []
    skipped: list[str] = []
    for folder in folders:
        if (folder / "config.yaml").exists():
            experiments.append(folder)
            continue
        inside, problems = [], []
        for trained in sorted({file.parent for file in folder.glob("*/*.pth")}):
            try:
                args = read_config(trained / "config.yaml")
            except ValueError as e:
                problems.append(f"{trained.name} is left out: {e}")
                continue
            if hasattr(args, "encoder"):  # it is not a language model
                inside.append(trained)
        if not inside:
            raise ValueError(
                f"{folder} has no config.yaml, and no folder in it is an experiment of a "
                "recognizer with a checkpoint; expected an experiment, or a folder of "
                f"experiments{''.join(f'. {problem}' for problem in problems)}"
            )
        experiments += inside
        skipped += problems
    each = {folder.resolve(): folder for folder in experiments}
    return dict(zip(distinct_names([*each]), each.values(), strict=True)), skipped


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of different paths by which they can be told apart."""

    def end(path: Path, length: int) -> str:
        return "/".join(path.parts[-length:])

    names = []
    for path in paths:
        length = 1
        while sum(end(other, length) == end(path, length) for other in paths) > 1:
            length += 1
        names.append(end(path, length))
    return names

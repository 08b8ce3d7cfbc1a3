"""An experiment as a report shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_l0prune.core.budget import COSTS
from espnet_l0prune.core.constraints import CONSTRAINTS
from espnet_l0prune.core.text import plain
from espnet_l0prune.deploy.inspect import Inspection, inspect_experiment
from espnet_l0prune.plugin.experiment import last_of, read_config
from espnet_l0prune.report.history import Epoch, read_history

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
    "sparsity_constraint",
    "sparsity_constraint_conf",
    "sparsity_scheduler",
    "sparsity_scheduler_conf",
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
        problems: why something could not be read
    """

    name: str
    folder: Path
    config: dict[str, object]
    history: list[Epoch]
    inspection: Inspection | None
    multipliers: list[str]
    problems: list[str]

    @property
    def costs(self) -> list[str]:
        """Those with a target."""
        last = self.history[-1].train if self.history else {}
        return [cost for cost in COSTS if f"sparsity_target_{cost}" in last]


def read_run(folder: Path, name: str) -> Run:
    """Read an experiment's folder. A network that cannot be counted is no error: the
    reason is noted.

    Raises:
        ValueError: a configuration that is missing or damaged
    """
    args = read_config(folder / "config.yaml")
    options = {k: getattr(args, k, None) for k in OPTIONS}
    checkpoint, inspection, history, problems = folder / last_of(folder), None, [], []
    try:
        history = read_history(folder, getattr(args, "accum_grad", 1))
    except ValueError as e:
        problems.append(str(e))
    try:
        if checkpoint.exists():
            inspection = inspect_experiment(folder, checkpoint.name)
    except (ValueError, ImportError) as e:
        problems.append(str(e))
    constraint = CONSTRAINTS.get(getattr(args, "sparsity_constraint", None) or "")
    return Run(
        name=plain(name),
        folder=folder,
        config={k: v for k, v in options.items() if v not in (None, {}, [])},
        history=history,
        inspection=inspection,
        multipliers=[] if constraint is None else list(constraint().start()),
        problems=problems,
    )


def find_runs(folders: list[Path]) -> dict[str, Path]:
    """The experiments in these folders by name: of a folder without config.yaml, all in
    it that are recognizers and were trained or cut.

    Raises:
        ValueError: a folder without any
    """
    found: list[Path] = []
    for folder in folders:
        if (folder / "config.yaml").exists():
            found.append(folder)
            continue
        inside = sorted(
            file.parent for file in folder.glob("*/config.yaml") if _is_recognizer(file)
        )
        if not inside:
            raise ValueError(
                f"{folder} has no config.yaml, and no folder in it is an experiment of a "
                "recognizer with a checkpoint; expected an experiment, or a folder of "
                "experiments"
            )
        found += inside
    each = {folder.resolve(): folder for folder in found}
    return dict(zip(distinct_names([*each]), each.values(), strict=True))


def _is_recognizer(config: Path) -> bool:
    """Whether a configuration is of one, beside a checkpoint: no language model's."""
    try:
        known = hasattr(read_config(config), "encoder")
    except ValueError:
        return False
    return known and bool(list(config.parent.glob("*.pth")))


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

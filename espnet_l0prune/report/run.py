"""An experiment as a report shows it."""

from dataclasses import dataclass
from pathlib import Path

from espnet_l0prune.core.constraints import CONSTRAINTS
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
    """

    name: str
    folder: Path
    config: dict[str, object]
    history: list[Epoch]
    inspection: Inspection | None
    multipliers: list[str]

    @property
    def costs(self) -> list[str]:
        """Those with a target."""
        prefix, last = "sparsity_target_", self.history[-1].train if self.history else {}
        return [name.removeprefix(prefix) for name in last if name.startswith(prefix)]


def read_run(folder: Path, name: str) -> Run:
    """Read an experiment's folder.

    Raises:
        ValueError: files that are missing or damaged
    """
    args = read_config(folder / "config.yaml")
    options = {k: getattr(args, k) for k in OPTIONS if getattr(args, k, None)}
    checkpoint, inspection = folder / last_of(folder), None
    if checkpoint.exists():
        inspection = inspect_experiment(folder, checkpoint.name)
    constraint = CONSTRAINTS.get(getattr(args, "sparsity_constraint", None) or "")
    return Run(
        name=name,
        folder=folder,
        config=options,
        history=read_history(folder, args.accum_grad),
        inspection=inspection,
        multipliers=[] if constraint is None else list(constraint().start()),
    )


def find_runs(folders: list[Path]) -> dict[str, Path]:
    """The experiments in these folders by name: of a folder without config.yaml, all in
    it that were trained or cut.

    Raises:
        ValueError: a folder without any
    """
    found = []
    for folder in folders:
        if (folder / "config.yaml").exists():
            found.append(folder)
            continue
        inside = sorted(
            file.parent
            for file in folder.glob("*/config.yaml")
            if list(file.parent.glob("*.pth"))
        )
        if not inside:
            raise ValueError(
                f"{folder} has no config.yaml, and no folder in it has one beside a "
                "checkpoint; expected an experiment, or a folder of experiments"
            )
        found += inside
    short = [folder.resolve().name for folder in found]
    return {
        name if short.count(name) == 1 else f"{folder.resolve().parent.name}/{name}": (
            folder
        )
        for name, folder in zip(short, found, strict=True)
    }

"""A rehearsal trains an adopted experiment for some 50 updates, on its own data.

It runs the pruning's own command at a fast-forward schedule. There are two short epochs,
each with a validation: the first ends one update before the gates are fixed, and all but
one update of the second train the fixed network.
"""

import argparse
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import humanfriendly

from espnet_l0prune.core.constraints import AbsProjection
from espnet_l0prune.core.optim import progress_in
from espnet_l0prune.core.phases import LENGTHS, AbsSparsityScheduler
from espnet_l0prune.core.python import run_python
from espnet_l0prune.core.reading import read_tensors, read_yaml
from espnet_l0prune.core.steps import Step, quiet
from espnet_l0prune.core.tracking import UNMET
from espnet_l0prune.deploy.adopt import Adopted
from espnet_l0prune.deploy.configuration import parse
from espnet_l0prune.plugin.epochs import updates_of_an_epoch
from espnet_l0prune.plugin.options import make_constraint, make_goal, make_scheduler
from espnet_l0prune.plugin.reporter import reported_seconds, reported_types

GATED = 25  # updates until the gates are fixed, about
SHORT = 0.005  # of the sparsity in the end
SKIPPED = 5  # updates; use_amp skips some at first, while it looks for its scale
QUIET = {
    "num_att_plot": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "use_wandb": False,
}


@dataclass(frozen=True)
class Rehearsal:
    """A `Rehearsal` holds what a short pruning has shown.

    Attributes:
        log: what ESPnet printed
        updates: number of updates, with those that were skipped
        skipped: number of those that ESPnet skipped
        target: sparsities to reach, by cost
        actual: sparsities once the gates are fixed, by cost
        distance: the largest distance of an expected sparsity from its target, one update
            before
        undecided: share of the gates that may as well be open as closed then
        follows: whether gates follow the target in so few updates, as a penalty's do not
        loss: that of the task, `loss_task`, in the last validation
        memory: peak of the GPU's memory in GB; None without a GPU
        update: seconds that an update takes while the gates train, and afterwards
        validation: seconds that a validation takes
        pruning: seconds that the whole pruning will take, at this rate; None where the
            number of updates in an epoch is not known
        fine_tuning: the same for the fine-tuning, if the network were not cut
    """

    log: Path
    updates: int
    skipped: int
    target: dict[str, float]
    actual: dict[str, float]
    distance: float
    undecided: float
    follows: bool
    loss: float
    memory: float | None
    update: tuple[float, float]
    validation: float
    pruning: float | None
    fine_tuning: float | None

    @property
    def problem(self) -> str | None:
        """Return what is wrong, with a remedy; None if the pruning lands."""
        slower = "lower the learning rate, by --set optim_conf.lr=0.0001, say"
        if self.skipped > SKIPPED:
            return (
                f"{self.skipped} updates had gradients that are no finite numbers, and "
                f"ESPnet skipped them; {slower}"
            )
        if not math.isfinite(self.loss):
            return f"the loss of the validation is no finite number; {slower}"
        if any(self.actual[cost] < goal - SHORT for cost, goal in self.target.items()):
            return "too little is removed; choose more --units, or a smaller round_to"
        if self.follows and self.distance > UNMET:
            return (
                "the expected sparsity does not follow its target; bring the targets "
                "nearer to each other, or choose more --units"
            )
        return None

    def lines(self) -> list[str]:
        """Return what the user wants to know, in sentences."""
        removed = ", ".join(
            f"{self.actual[cost]:.1%} of the {cost} (target: {target:.1%})"
            for cost, target in self.target.items()
        )
        verdict = "lands"
        if self.problem is not None:
            verdict = f"does not land: {self.problem}"
        elif not self.follows:
            verdict = "runs, but a penalty needs more updates to show whether it lands"
        landing = (
            f"Rehearsal: the pruning {verdict}. In {self.updates} updates it removed "
            f"{removed}. Before the gates were fixed, {self.undecided:.1%} of them were "
            f"undecided, and the expected sparsity was {100 * self.distance:.2f} points "
            f"off. The loss of the task is {self.loss:.4g} in the end."
        )
        times = (
            f"An update takes {self.update[0]:.3g} s, or {self.update[1]:.3g} s once the "
            f"gates are fixed, and a validation {self.validation:.3g} s"
        )
        if self.memory is not None:
            times += f", with {self.memory:.1f} GB of the GPU's memory"
        if self.pruning is None or self.fine_tuning is None:
            times += "; how many updates an epoch has cannot be told beforehand"
        else:
            pruning, fine_tuning = (
                humanfriendly.format_timespan(round(seconds), max_units=2)
                for seconds in (self.pruning, self.fine_tuning)
            )
            times += f": pruning takes about {pruning}, fine-tuning {fine_tuning}"
        return [landing, f"{times}."]


def rehearse(adopted: Adopted, step: Step = quiet) -> Rehearsal:
    """Run the pruning's command for some 50 updates, in the folder `rehearsal`.

    The folder lies beside prune.yaml, and keeps the log, but no weights.

    Args:
        adopted: what `adopt` has written, with the training data
        step: is called with what runs and where its log is

    Raises:
        RuntimeError: the training failed; the message has ESPnet's error
        ValueError: an experiment of ESPnet3
    """
    if adopted.espnet3:
        raise ValueError(
            f"--rehearse runs ESPnet2's trainer, and {adopted.prune} is for ESPnet3; "
            "expected no --rehearse. The configurations are written."
        )
    args, finetune = _options(adopted.prune), _options(adopted.finetune)
    scheduler, goal = make_scheduler(args), make_goal(args)
    lengths = fast_forward(scheduler)
    updates = sum(lengths.values()) - 1
    log = adopted.prune.with_name("rehearsal") / "train.log"
    step(f"training {2 * updates} updates and validating twice; the log is {log}")
    checkpoint = _train(adopted, log, updates * args.accum_grad, lengths)
    made = progress_in(checkpoint["optimizers"][0]).update  # type: ignore[union-attr]
    stats = checkpoint["reporter"]["stats"]
    first, last = stats[min(stats)], stats[max(stats)]
    trained = last["train"]["total_count"] // args.accum_grad
    before, after = first["valid"], last["valid"]
    gated, fixed = first["train"]["train_time"], last["train"]["train_time"]
    validation = float(reported_seconds(after["time"]))  # type: ignore[arg-type]
    pruning, fine_tuning = (
        conf.max_epoch * (epoch * seconds + validation) if epoch else None
        for conf, seconds in ((args, gated), (finetune, fixed))
        for epoch in [updates_of_an_epoch(vars(conf))]
    )
    return Rehearsal(
        log=log,
        updates=trained,
        skipped=trained - made,
        target=goal.targets,
        actual={cost: after[f"sparsity_actual_{cost}"] for cost in goal.targets},
        distance=max(
            abs(before[f"sparsity_expected_{cost}"] - before[f"sparsity_target_{cost}"])
            for cost in goal.targets
        ),
        undecided=before["gates_undecided"],
        follows=isinstance(make_constraint(args), AbsProjection),
        loss=after["loss_task"],
        memory=after.get("gpu_max_cached_mem_GB"),
        update=(gated, fixed),
        validation=validation,
        pruning=pruning,
        fine_tuning=fine_tuning,
    )


def fast_forward(scheduler: AbsSparsityScheduler) -> dict[str, int]:
    """Return lengths of some 25 updates in all, in the proportions of a schedule's.

    A warm-up that measures importances is as long as it must be.
    """
    total = sum(scheduler.lengths)  # without pauses at milestones
    warmup, *others = (math.ceil(GATED * length / total) for length in scheduler.lengths)
    lengths = max(warmup, scheduler.least_warmup), *others
    return dict(zip(LENGTHS, lengths, strict=True))


def _train(adopted: Adopted, log: Path, batches: int, lengths: dict[str, int]) -> dict:
    """Run the pruning's command, but for two epochs, and keep none of its weights.

    Args:
        adopted: it has the command
        log: a file to write, in a folder of its own that is made
        batches: number of batches in an epoch
        lengths: those of the phases, in updates

    Returns:
        the last checkpoint
    """
    log.parent.mkdir(exist_ok=True)
    changes = {
        "output_dir": log.parent,
        "resume": False,
        "max_epoch": 2,
        "num_iters_per_epoch": batches,
        **QUIET,
    }
    more = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    options = {"in_epochs": False, "milestones": "null", **lengths}
    for name, value in options.items():
        more += ["--sparsity_scheduler_conf", f"{name}={value}"]
    _, _, module, *words = shlex.split(adopted.commands[0])
    with log.open("wb") as written:
        code = f"from {module} import main; main()"
        done = run_python(code, *words, *more, log=written)
    if done.returncode:
        raise RuntimeError(
            f"the rehearsal failed with exit code {done.returncode}: {_error(log)}. Its "
            f"log is {log}. Mend what is wrong, and prune with {adopted.prune}, or adopt "
            "into another --out, with --set KEY=VALUE for options that are to change."
        )
    checkpoint = read_tensors(log.with_name("checkpoint.pth"), reported_types())
    for weights in log.parent.glob("*.pth"):
        weights.unlink()
    return checkpoint


def _options(file: Path) -> argparse.Namespace:
    return parse(read_yaml(file))


def _error(log: Path) -> str:
    """Return the last line of a failed training's log that names an error."""
    text = log.read_text("utf-8", "replace")
    named = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", text, re.MULTILINE)
    return (named or text.strip().splitlines() or ["no message"])[-1]

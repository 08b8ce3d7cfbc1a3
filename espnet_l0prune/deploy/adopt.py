"""Adopting makes a dense experiment prunable: it writes what is to be trained next."""

import argparse
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml
from torch import nn

from espnet_l0prune.core.constraints import AbsPenalty
from espnet_l0prune.core.controller import SparsityController
from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.files import claimed
from espnet_l0prune.core.gates import HardConcrete, LogAlpha
from espnet_l0prune.core.optim import L0AdamW, Progress
from espnet_l0prune.core.pace import fit_to_run_, shortage, updates_to_close
from espnet_l0prune.core.ranges import check
from espnet_l0prune.core.schedules import AbsSparsityScheduler
from espnet_l0prune.core.steps import Step, quiet
from espnet_l0prune.deploy.choice import (
    HELD,
    Choice,
    fine_tuning,
    pruning,
    units_of,
    with_settings,
    without_run,
)
from espnet_l0prune.deploy.configuration import modernize, parse
from espnet_l0prune.deploy.espnet3 import as_espnet2, as_espnet3, is_espnet3
from espnet_l0prune.deploy.espnet3 import commands as espnet3_commands
from espnet_l0prune.deploy.rates import is_like_adam, number_of
from espnet_l0prune.deploy.source import load_dense, read_source
from espnet_l0prune.deploy.verify import outputs
from espnet_l0prune.plugin.building import build_model, refuse_adapters, task_name
from espnet_l0prune.plugin.counting import make_budget, make_parts
from espnet_l0prune.plugin.epochs import updates_of_an_epoch
from espnet_l0prune.plugin.models import our_name
from espnet_l0prune.plugin.network import NETWORK_KINDS
from espnet_l0prune.plugin.options import make_constraint, make_goal, make_scheduler
from espnet_l0prune.plugin.prepare import check_optimizer, check_trainable

# Options of learning-rate schedulers that depend on how long a training is
OF_A_LENGTH = (
    *("T_max", "T_0", "first_cycle_steps", "max_steps", "milestones", "step_size"),
    *("steps_per_epoch", "total_steps", "warmup_steps_list"),
)

# Front ends with self-supervised models that stay whole
OF_OTHERS = ("huggingface", "fused")

# The command that trains a task's models, where it is not named after the task
TRAIN = {"s2t_ctc": "espnet_l0prune.plugin.s2t_train_ctc"}


@dataclass
class Adopted:
    """An `Adopted` holds the files written and the commands that come next.

    Attributes:
        parameters: number of parameters in scope
        reachable: the largest possible sparsities, by cost
        notes: what could not be taken over from the dense training
        espnet3: whether the files are for ESPnet3, and not for ESPnet2
    """

    prune: Path
    finetune: Path
    commands: list[str]
    parameters: int
    reachable: dict[str, float]
    notes: list[str]
    espnet3: bool


def adopt(
    source: Path,
    out: Path,
    checkpoint: str | None,
    choice: Choice,
    step: Step = quiet,
) -> Adopted:
    """Write prune.yaml and finetune.yaml for a dense experiment or a zip of the zoo.

    The gated model is built and its budget counted before anything is written.

    Args:
        source: the experiment's folder, or the zip, which is unpacked into `out`/dense
        out: the folder to make
        checkpoint: name of the checkpoint in the folder; None for its average
        choice: how to prune
        step: is called with the name of each step as it begins

    Raises:
        ValueError: a model that cannot be pruned, a target that it cannot reach, a
            number out of its range, an `out` that exists or has a colon, files that are
            missing, damaged or not safe
        OSError: `out` is not writable
    """
    if ":" in str(out):
        raise ValueError(
            f"{out} has a colon, where ESPnet's --init_param ends the path of a model; "
            "choose another --out"
        )
    numbers: dict[str, float | None] = {
        **{f"--{cost}": choice.target.get(cost) for cost in COSTS},
        **dict(zip(("--epochs", "--finetune_epochs"), choice.epochs, strict=True)),
    }
    check("command line", {k: v for k, v in numbers.items() if v is not None})
    with claimed(out):
        read = read_source(source, checkpoint, out / "dense", choice, step)
        return _adopt(*read, out, choice, step)


def _adopt(
    config: dict,
    config_file: Path,
    model_file: Path,
    out: Path,
    choice: Choice,
    step: Step,
) -> Adopted:
    written, espnet3 = config, is_espnet3(config)
    config = as_espnet2(config) if espnet3 else config
    args = argparse.Namespace(**written)
    name = task_name(args)
    model = our_name(name, config.get("model"))
    refuse_adapters(args)
    gpus, dense = _gpus(config), modernize(without_run(config, choice))
    files = {"teacher_config": str(config_file), "teacher_model_file": str(model_file)}
    ours = {**dense, "model": model}
    finetune = {**ours, **fine_tuning(dense, choice, files, out / "cut")}
    finetune = with_settings(finetune, choice.finetune_settings)
    finetune["init_param"] = [str(out / "cut" / "model.pth")]
    _as_trained(finetune, gpus)
    trained = load_dense(written, config_file, model_file, step)
    prune = {**ours, **pruning(dense, choice, units_of(trained, choice), files)}
    prune = with_settings(prune, choice.settings)
    link = out / "dense.pth" if ":" in str(model_file) else None
    prune["init_param"] = [str(link or model_file)]

    args = _as_trained(prune, gpus)
    step("building it with gates, and counting what it can lose")
    goal, scheduler, gated = make_goal(args), make_scheduler(args), build_model(args)
    budget, constraint = make_budget(gated, goal), make_constraint(args)
    parts = make_parts(gated, goal, budget)
    optimizer = L0AdamW(gated.parameters(), **args.optim_conf)
    # refuses what the training would
    SparsityController(budget, parts, goal, scheduler, constraint, optimizer)
    step("computing what the cut will compare")
    outputs(gated)  # the cut will need them, so this must work before the training
    held = _holding(gated, args.freeze_param)
    gates, updates = [*budget.gates.values()], updates_of_an_epoch({**config, **prune})
    phases = sum(scheduler.lengths)
    if updates is not None:
        fit_to_run_(scheduler, Progress(), updates, args.max_epoch, epoch=0)
    elif scheduler.in_epochs and phases >= args.max_epoch:
        raise ValueError(
            f"warmup_steps, ramp_steps and hold_steps are {phases:.3g} epochs in all; "
            f"expected fewer than max_epoch, which is {args.max_epoch}, as the frozen "
            "network must be trained too"
        )
    pace = _phases(scheduler, goal.targets, args.max_epoch, updates)
    if isinstance(constraint, AbsPenalty):
        pace += _pace(updates, scheduler, gates, optimizer)

    if link is not None:
        link.symlink_to(model_file.resolve())
    paths = {}
    for kind, conf in (("prune", prune), ("finetune", finetune)):
        conf["freeze_param"] = [path for path in args.freeze_param if path not in held]
        paths[kind] = out / f"{kind}.yaml"
        if espnet3:
            folder = out / {"prune": "pruned", "finetune": "finetuned"}[kind]
            conf = as_espnet3(written, dense, conf, folder)
        text = yaml.safe_dump(conf, sort_keys=False, allow_unicode=True)
        head = f"# By espnet-l0prune adopt, from {config_file}\n"
        paths[kind].write_text(head + text, "utf-8")
    return Adopted(
        **paths,
        commands=(
            espnet3_commands(written, out, **paths)
            if espnet3
            else _commands(name, gpus, out, **paths)
        ),
        parameters=round(budget.totals["params"]),
        reachable=budget.reachable(),
        notes=[*_notes(config, prune, held), *_left_whole(prune, choice), *pace],
        espnet3=espnet3,
    )


def _as_trained(config: dict, gpus: int) -> argparse.Namespace:
    """Return the options as the training will see them; refuse what it would refuse."""
    args = parse(config)
    args.ngpu = gpus
    check_optimizer(args)
    check_trainable(args)
    return args


def _holding(model: nn.Module, frozen: Sequence[str]) -> list[str]:
    """Return the parts in `freeze_param` that hold gates, which could not move."""
    gates = [n for n, p in model.named_parameters() if isinstance(p, LogAlpha)]
    return [path for path in frozen if any(n.startswith(f"{path}.") for n in gates)]


def _gpus(dense: dict) -> int:
    """Return the dense training's number of GPUs; its distributed processes wrote 1."""
    return max(int(number_of(dense, name) or 0) for name in ("dist_world_size", "ngpu"))


def _commands(task: str, gpus: int, out: Path, prune: Path, finetune: Path) -> list[str]:
    """Return the commands that prune, cut and fine-tune, on as many GPUs as before."""
    train = ["python", "-m", TRAIN.get(task, f"espnet2.bin.{task}_train")]
    if gpus:
        train += ["--ngpu", str(gpus)]
    if gpus > 1:
        train += ["--multiprocessing_distributed", "true"]
    train += ["--resume", "true", "--config"]
    commands: tuple[list[object], ...] = (
        [*train, prune, "--output_dir", out / "pruned"],
        ["espnet-l0prune", "cut", out / "pruned", "--out", out / "cut"],
        [*train, finetune, "--output_dir", out / "finetuned"],
    )
    return [shlex.join(map(str, command)) for command in commands]


def _notes(dense: dict, prune: dict, held: list[str]) -> list[str]:
    notes = []
    if not is_like_adam(dense):
        notes.append(
            f"optim: {dense.get('optim')} has another learning rate than l0_adamw would; "
            "prune.yaml leaves it at the default: set lr in its optim_conf"
        )
    kept = [key for key in dense.get("scheduler_conf") or {} if key in OF_A_LENGTH]
    if kept:
        notes.append(
            f"scheduler: {dense.get('scheduler')} has {', '.join(kept)} of the dense "
            "training, which was of another length: give the pruning's, by --set "
            f"scheduler_conf.{kept[0]}=..."
        )
    if dense.get("use_deepspeed"):
        notes.append("use_deepspeed is left out: pruning needs ESPnet's own trainer")
    if held:
        notes.append(
            f"freeze_param: {', '.join(held)} is left out, as gates in it have to move"
        )
    steps = [(conf.get("frontend_conf") or {}).get(HELD) for conf in (dense, prune)]
    if steps[0] and not steps[1]:
        notes.append(
            f"frontend_conf: {HELD}: {steps[0]} is left out, as gates in the front end "
            "have to move"
        )
    return notes


def _left_whole(prune: dict, choice: Choice) -> list[str]:
    """Return notes on networks that are in scope, and have no kind with gates."""
    if choice.scope != "model":
        return []
    decoder, frontend = prune.get("decoder"), prune.get("frontend")
    left = {} if decoder in (None, *NETWORK_KINDS["decoder"]) else {"decoder": decoder}
    if frontend in OF_OTHERS:
        left["frontend"] = frontend
    return [
        f"{part}: {name} is left whole, as it has no kind with gates; it counts"
        for part, name in left.items()
    ]


def _phases(
    scheduler: AbsSparsityScheduler,
    targets: Mapping[str, float],
    epochs: int,
    updates: int | None,
) -> list[str]:
    """Describe the phases of the pruning, and how the targets rise in the second.

    Args:
        scheduler: the schedule, fitted to the epochs' length if it is known
        targets: sparsities to reach in the end, by cost
        epochs: number of epochs
        updates: number of updates in an epoch; None where it is not known
    """
    unit, total = "epochs", float(epochs)
    lengths = [float(length) for length in scheduler.lengths]
    if updates or not scheduler.in_epochs:
        ends = scheduler.ramp_begins, scheduler.hold_begins, scheduler.frozen_begins
        lengths = [float(b - a) for a, b in pairwise((0, *ends))]
        unit, total = "updates", float(epochs * updates) if updates else math.inf
    warmup, ramp, hold = (f"{round(length, 2):,g}" for length in lengths)
    left = total - sum(lengths)
    rest = f"{round(left, 2):,g} {unit}" if math.isfinite(left) else "the rest"
    phases = (
        f"The network is dense for {warmup} {unit}, loses units for {ramp}, keeps its "
        f"size while the gates settle for {hold}, and is trained with fixed gates for "
        f"{rest}."
    )
    if not lengths[1]:
        return [phases]
    quarters, digits, path = (0.25, 0.5, 0.75), 2 if unit == "epochs" else 0, []
    times = [lengths[0] + lengths[1] * done for done in (*quarters, 1)]
    when = _listed([f"{round(time, digits):,g}" for time in times])
    for cost, target in targets.items():
        shares = [*(scheduler.sparsity(target, done) for done in quarters), target]
        rising = _listed([f"{100 * share:.3g}" for share in shares])
        path.append(f"The target in {cost} is {rising}% after {when} {unit}.")
    return [phases, *path]


def _listed(words: list[str]) -> str:
    """Return words with commas, and "and" before the last."""
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _pace(
    updates: int | None,
    scheduler: AbsSparsityScheduler,
    gates: list[HardConcrete],
    optimizer: L0AdamW,
) -> list[str]:
    """Return notes on the time that the gates have to close.

    Args:
        updates: number of updates in an epoch; None where it is not known
        scheduler: the schedule, in epochs unless a setting has it in updates
        gates: all gates
        optimizer: moves the gates
    """
    if not scheduler.in_epochs:
        short = shortage(scheduler, gates, optimizer)
        return [short] if short else []
    if updates:
        short = shortage(scheduler, gates, optimizer)
        return [f"{short} With more --epochs these are longer."] if short else []
    needed, epochs = updates_to_close(gates, optimizer), sum(scheduler.lengths[1:])
    return [
        f"To close a gate takes some {needed} updates. Ramp and hold have {epochs:g} "
        f"epochs: where one has fewer than {math.ceil(needed / epochs)} updates, give "
        "more --epochs."
    ]

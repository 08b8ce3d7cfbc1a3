"""Adopting makes a dense experiment prunable: it writes what is to be trained next."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import nn

from espnet_l0prune.core.constraints import AbsPenalty
from espnet_l0prune.core.controller import SparsityController
from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.files import claimed
from espnet_l0prune.core.gates import LogAlpha
from espnet_l0prune.core.optim import L0AdamW, Progress
from espnet_l0prune.core.pace import check_milestones, fit_to_run_
from espnet_l0prune.core.ranges import check
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
from espnet_l0prune.deploy.commands import at, commands, script
from espnet_l0prune.deploy.configuration import modernize, parse
from espnet_l0prune.deploy.espnet3 import as_espnet2, as_espnet3, is_espnet3
from espnet_l0prune.deploy.espnet3 import commands as espnet3_commands
from espnet_l0prune.deploy.rates import is_like_adam, number_of
from espnet_l0prune.deploy.source import load_dense, read_source
from espnet_l0prune.deploy.timetable import pace, phases
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


@dataclass
class Adopted:
    """An `Adopted` holds the files written and the commands that come next.

    Attributes:
        parameters: number of parameters in scope
        reachable: the largest possible sparsities, by cost
        notes: what could not be taken over from the dense training
        espnet3: whether the files are for ESPnet3, and not for ESPnet2
        script: a shell script that runs all commands, if there are milestones
    """

    prune: Path
    finetune: Path
    commands: list[str]
    parameters: int
    reachable: dict[str, float]
    notes: list[str]
    espnet3: bool
    script: Path | None = None


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
    _check_milestones(choice)
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

    def finetuning(cut: Path) -> dict:
        conf = {**ours, **fine_tuning(dense, choice, files, cut)}
        conf = with_settings(conf, choice.finetune_settings)
        return {**conf, "init_param": [str(cut / "model.pth")]}

    finetune = finetuning(out / "cut")
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
    length, milestones = scheduler.length, scheduler.milestones[:-1]
    if milestones and espnet3:
        raise ValueError(
            f"milestones is {scheduler.milestones}, and the experiment is ESPnet3's, "
            "whose pruning writes the network of its end alone; expected no milestones"
        )
    if updates is not None:
        fit_to_run_(scheduler, Progress(), updates, args.max_epoch, epoch=0)
    elif scheduler.in_epochs and length >= args.max_epoch:
        raise ValueError(
            f"warmup_steps, ramp_steps and hold_steps are {length:.3g} epochs in all; "
            f"expected fewer than max_epoch, which is {args.max_epoch}, as the frozen "
            "network must be trained too"
        )
    penalizes = isinstance(constraint, AbsPenalty)
    if updates is not None or not scheduler.in_epochs:
        check_milestones(scheduler, gates, optimizer, projects=not penalizes)
    told = phases(scheduler, goal.targets, args.max_epoch, updates)
    if penalizes:
        told += pace(updates, scheduler, gates, optimizer)

    if link is not None:
        link.symlink_to(model_file.resolve())
    paths, confs = {}, {"prune": prune, "finetune": finetune}
    confs |= {at("finetune", m): finetuning(out / at("cut", m)) for m in milestones}
    for kind, conf in confs.items():
        conf["freeze_param"] = [path for path in args.freeze_param if path not in held]
        paths[kind] = out / f"{kind}.yaml"
        if espnet3:
            folder = out / {"prune": "pruned", "finetune": "finetuned"}[kind]
            conf = as_espnet3(written, dense, conf, folder)
        text = yaml.safe_dump(conf, sort_keys=False, allow_unicode=True)
        head = f"# By espnet-l0prune adopt, from {config_file}\n"
        paths[kind].write_text(head + text, "utf-8")
    both = {kind: paths[kind] for kind in ("prune", "finetune")}
    lines = (
        espnet3_commands(written, out, **both)
        if espnet3
        else commands(name, gpus, out, milestones)
    )
    if milestones:
        (out / "run.sh").write_text(script(lines), "utf-8")
    return Adopted(
        **both,
        commands=lines,
        parameters=round(budget.totals["params"]),
        reachable=budget.reachable(),
        notes=[*_notes(config, prune, held), *_left_whole(prune, choice), *told],
        espnet3=espnet3,
        script=out / "run.sh" if milestones else None,
    )


def _check_milestones(choice: Choice) -> None:
    """Raise ValueError for milestones that are no rising shares below the target."""
    if not choice.milestones:
        return
    check("command line", {"--milestones": choice.milestones})
    last = max(choice.target.values())
    if choice.milestones[-1] >= last:
        raise ValueError(
            f"command line: --milestones is {[*choice.milestones]}; expected each to be "
            f"below the target (the largest, if there are several), which is {last}"
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

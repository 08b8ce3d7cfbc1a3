"""Make an experiment that was trained dense prunable: write what to train next."""

import argparse
import copy
import math
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.feasibility import check_compatible, check_reachable
from espnet_l0prune.core.files import claimed
from espnet_l0prune.core.gates import HardConcrete, LogAlpha
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.pace import shortage, updates_to_close
from espnet_l0prune.core.ranges import check
from espnet_l0prune.core.schedules import AbsSparsityScheduler
from espnet_l0prune.core.steps import Step, how_long, quiet
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.deploy.configuration import modernize, parse
from espnet_l0prune.deploy.cut import STRUCTURE_FILES
from espnet_l0prune.deploy.foreign import TELLS, check_foreign
from espnet_l0prune.deploy.verify import outputs
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.plugin.building import build_model, refuse_adapters, task_name
from espnet_l0prune.plugin.counting import make_budget, sites_of
from espnet_l0prune.plugin.epochs import updates_of_an_epoch
from espnet_l0prune.plugin.experiment import average_of, load_trained, read_config
from espnet_l0prune.plugin.network import DECODERS, ENCODERS
from espnet_l0prune.plugin.options import make_goal, make_scheduler
from espnet_l0prune.plugin.prepare import check_trainable
from espnet_l0prune.plugin.register import MODELS
from espnet_l0prune.plugin.resume import RUN

DATA = tuple(
    f"{part}_{what}"
    for part in ("train", "valid")
    for what in ("data_path_and_name_and_type", "shape_file")
)
ADAM = ("lr", "betas", "eps", "weight_decay")
LOSS = 20.0  # an utterance's, where it is not normalized by length


@dataclass
class Choice:
    """How an experiment is to be pruned.

    Args:
        target: sparsity by cost, shares in (0, 1)
        scope: `encoder`, or `model` for the decoder too
        units: as in `encoder_conf`
        epochs: of the pruning, and of the fine-tuning; a third of the training's by
            default, and at least 6 and 4
        data: whether the configurations name the training data too
    """

    target: Mapping[str, float] = field(default_factory=lambda: {"params": 0.5})
    scope: str = "encoder"
    units: str | list[str] = "default"
    epochs: tuple[int | None, int | None] = (None, None)
    data: bool = True


@dataclass
class Adopted:
    """The files written, and the commands that come next.

    Attributes:
        parameters: in scope
        reachable: the largest sparsities, by cost
        notes: what could not be taken over from the dense training
    """

    prune: Path
    finetune: Path
    commands: list[str]
    parameters: int
    reachable: dict[str, float]
    notes: list[str]


def adopt(
    source: Path,
    out: Path,
    checkpoint: str | None,
    choice: Choice,
    step: Step = quiet,
) -> Adopted:
    """Write prune.yaml and finetune.yaml for a dense experiment, or for a zoo's zip.

    The gated model is built and its budget counted before anything is written.

    Args:
        source: the experiment's folder, or the zip, which goes to `out`/dense
        out: a new folder
        checkpoint: of the folder; by default its average
        step: is told what begins

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
        if source.is_file():
            step(f"unpacking {source}")
            config_file, model_file = unpack_model(source, out / "dense")
            dense = vars(read_config(config_file))
            dropped = TELLS if choice.data else (*TELLS, *DATA)
            dense = {k: v for k, v in dense.items() if k not in dropped}
            check_foreign(_without_run(dense, choice), out / "dense", config_file)
        else:
            config_file = source / "config.yaml"
            model_file = source / (checkpoint or average_of(source))
            dense = vars(read_config(config_file))
        return _adopt(dense, config_file, model_file, out, choice, step)


def _adopt(
    config: dict,
    config_file: Path,
    model_file: Path,
    out: Path,
    choice: Choice,
    step: Step,
) -> Adopted:
    args = argparse.Namespace(**config)
    name = task_name(args)
    if name not in MODELS:
        raise ValueError(
            f"{config_file} is of ESPnet's {name} task, whose gates cannot be trained; "
            f"expected one of {', '.join(MODELS)}"
        )
    if config.get("model", "espnet") not in ("espnet", "l0_distill"):
        raise ValueError(
            f"{config_file} has model: {config['model']}; expected espnet, of which "
            "l0_distill is a kind"
        )
    refuse_adapters(args)
    gpus, dense = _gpus(config), modernize(_without_run(config, choice))
    files = {"teacher_config": str(config_file), "teacher_model_file": str(model_file)}
    finetune = {**dense, **_fine_tuning(dense, choice, files, out / "cut")}
    finetune["init_param"] = [str(out / "cut" / "model.pth")]
    _as_trained(finetune, gpus)
    step(f"loading {model_file}: {how_long(model_file)}")
    trained = load_trained(argparse.Namespace(**copy.deepcopy(config)), model_file)
    if any(site.gates for site in sites_of(trained)):
        raise ValueError(
            f"{config_file} has gates; expected a dense model, or one that was cut: "
            "`espnet-l0prune cut` comes first"
        )
    prune = {**dense, **_pruning(dense, choice, _units(trained, choice), files)}
    link = out / "dense.pth" if ":" in str(model_file) else None
    prune["init_param"] = [str(link or model_file)]

    args = _as_trained(prune, gpus)
    step("building it with gates, and counting what it can lose")
    goal, scheduler, gated = make_goal(args), make_scheduler(args), build_model(args)
    budget = make_budget(gated, goal)
    check_reachable(budget, goal.targets)
    check_compatible(budget, goal.targets)
    step("computing what the cut will compare")
    outputs(gated)  # which the cut will compare, at the end of the training
    held = _holding(gated, args.freeze_param)
    optimizer = L0AdamW(gated.parameters(), **args.optim_conf)
    gates = [*budget.gates.values()]
    pace = _pace(updates_of_an_epoch(config), scheduler, gates, optimizer)

    if link is not None:
        link.symlink_to(model_file.resolve())
    paths = {}
    for kind, conf in (("prune", prune), ("finetune", finetune)):
        conf["freeze_param"] = [path for path in args.freeze_param if path not in held]
        paths[kind] = out / f"{kind}.yaml"
        text = yaml.safe_dump(conf, sort_keys=False, allow_unicode=True)
        head = f"# By espnet-l0prune adopt, from {config_file}\n"
        paths[kind].write_text(head + text, "utf-8")
    return Adopted(
        **paths,
        commands=_commands(name, gpus, out, **paths),
        parameters=round(budget.totals["params"]),
        reachable=budget.reachable(),
        notes=[*_notes(config, held), *pace],
    )


def _as_trained(config: dict, gpus: int) -> argparse.Namespace:
    """The options as the training will see them, which it does not refuse."""
    args = parse(config)
    args.ngpu = gpus
    check_trainable(args)
    return args


def _holding(model: nn.Module, frozen: Sequence[str]) -> list[str]:
    """Of the parts that `freeze_param` names, those with gates, which would not move."""
    gates = [n for n, p in model.named_parameters() if isinstance(p, LogAlpha)]
    return [path for path in frozen if any(n.startswith(f"{path}.") for n in gates)]


def _gpus(dense: dict) -> int:
    """Of the training; a distributed one's processes write ngpu: 1."""
    return max(int(_number(dense, name) or 0) for name in ("dist_world_size", "ngpu"))


def _commands(task: str, gpus: int, out: Path, prune: Path, finetune: Path) -> list[str]:
    """What prunes, cuts and fine-tunes, on as many GPUs as the dense training had."""
    train = ["python", "-m", f"espnet2.bin.{task}_train"]
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


def _notes(dense: dict, held: list[str]) -> list[str]:
    notes = []
    if not _like_adam(dense):
        notes.append(
            f"optim: {dense.get('optim')} has another learning rate than l0_adamw would; "
            "prune.yaml leaves it at the default: set lr in its optim_conf"
        )
    if dense.get("use_deepspeed"):
        notes.append("use_deepspeed is left out: pruning needs ESPnet's own trainer")
    if held:
        notes.append(
            f"freeze_param: {', '.join(held)} is left out, as gates in it have to move"
        )
    return notes


def _pace(
    updates: int | None,
    scheduler: AbsSparsityScheduler,
    gates: list[HardConcrete],
    optimizer: L0AdamW,
) -> list[str]:
    """What there is to say about the time that the gates have to close.

    Args:
        updates: in an epoch, where that is known
        scheduler: in epochs

    Raises:
        ValueError: epochs too short for the schedule
    """
    if updates:
        scheduler.fit_(updates)
        short = shortage(scheduler, gates, optimizer)
        return [f"{short} With more --epochs these are longer."] if short else []
    needed, epochs = updates_to_close(gates, optimizer), sum(scheduler.lengths[1:])
    return [
        f"To close a gate takes some {needed} updates. Ramp and hold have {epochs:g} "
        f"epochs: where one has fewer than {math.ceil(needed / epochs)} updates, give "
        "more --epochs."
    ]


def _without_run(dense: dict, choice: Choice) -> dict:
    """What both trainings take over."""
    left_out = RUN if choice.data else (*RUN, *DATA)
    return {k: v for k, v in dense.items() if k not in left_out}


def _units(model: nn.Module, choice: Choice) -> dict[str, str | list[str]]:
    """To each network the kinds that it has; to the encoder also what neither has, which
    it refuses by name."""
    if choice.scope == "encoder" or isinstance(choice.units, str):
        return {"encoder": choice.units, "decoder": choice.units}
    has = {
        part: {kind for site in find_sites(getattr(model, part)) for kind in site.kinds}
        for part in ("encoder", "decoder")
    }
    alone = has["decoder"] - has["encoder"]
    return {
        "encoder": [kind for kind in choice.units if kind not in alone],
        "decoder": [kind for kind in choice.units if kind in has["decoder"]],
    }


def _pruning(dense: dict, choice: Choice, units: dict, files: dict[str, str]) -> dict:
    epochs = choice.epochs[0] or max(_epochs(dense) // 3, 6)
    gated = {part: {"units": kinds} for part, kinds in units.items()}
    conf, like = _optim_conf(dense), _like_adam(dense)
    conf = {k: v for k, v in conf.items() if like and k in ADAM}
    if dense.get("optim") != "adamw":  # whose default is L0AdamW's
        conf = {"weight_decay": 0.0, **conf}
    return {
        "max_epoch": epochs,
        "keep_nbest_models": 1,
        "best_model_criterion": [["valid", "loss_on_budget", "min"]],
        **_networks(dense, choice, gated),
        "model": "l0_distill",
        "model_conf": {**_conf(dense, "model"), **files},
        "optim": "l0_adamw",
        "optim_conf": conf,
        "scheduler_conf": _scheduler_conf(dense),
        "sparsity_goal_conf": {"target": dict(choice.target), "scope": choice.scope},
        "sparsity_scheduler": "linear",
        "sparsity_scheduler_conf": {
            "in_epochs": True,
            "warmup_steps": epochs / 24,
            "ramp_steps": epochs / 2,
            "hold_steps": epochs / 4,
        },
        "sparsity_constraint": "lagrangian",
        "sparsity_constraint_conf": _multipliers(dense),
    }


def _multipliers(dense: dict) -> dict[str, float]:
    """The default multipliers, on the scale of the loss."""
    normalized = _conf(dense, "model").get("length_normalized_loss", False)
    scale = 1 / LOSS if normalized else 1.0
    return {"multiplier_lr": 0.5 * scale, "lambda2": 1000.0 * scale}


def _fine_tuning(dense: dict, choice: Choice, files: dict[str, str], cut: Path) -> dict:
    cut_down = {
        name: {"units": [], "structure": str(cut / file)}
        for name, file in STRUCTURE_FILES.items()
    }
    return {
        "max_epoch": choice.epochs[1] or max(_epochs(dense) // 3, 4),
        **_networks(dense, choice, cut_down),
        "model": "l0_distill",
        "model_conf": {**_conf(dense, "model"), **files},
        "optim_conf": _optim_conf(dense),
        "scheduler_conf": _scheduler_conf(dense),
    }


def _networks(dense: dict, choice: Choice, more: Mapping[str, dict]) -> dict:
    """The networks in scope, as ours and with more options."""
    found: dict[str, Any] = {}
    known: dict[str, Mapping[str, type]] = {"encoder": ENCODERS, "decoder": DECODERS}
    for part in ("encoder", "decoder") if choice.scope == "model" else ("encoder",):
        stock = str(dense.get(part))
        name = stock if stock in known[part] else f"l0_{stock}"
        if name not in known[part]:
            able = ", ".join(name.removeprefix("l0_") for name in known[part])
            raise ValueError(
                f"the experiment has {part}: {stock}; only {able} can be pruned. "
                "Choose another --scope or another experiment."
            )
        found[part] = name
        found[f"{part}_conf"] = {**_conf(dense, part), **more[part]}
    return found


def _conf(dense: dict, name: str) -> dict:
    return dict(dense.get(f"{name}_conf") or {})


def _number(conf: dict, name: str) -> int | float | None:
    """A number of a configuration, where it has one.

    Raises:
        ValueError: something else
    """
    value = conf.get(name)
    if value is None or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    raise ValueError(
        f"the configuration has {name}: {reprlib.repr(value)}; expected a number"
    )


def _epochs(dense: dict) -> int:
    return int(_number(dense, "max_epoch") or 40)  # ESPnet's default


def _like_adam(dense: dict) -> bool:
    """Whether a learning rate of the dense training is one for AdamW too."""
    return "adam" in str(dense.get("optim"))


def _scheduler_conf(dense: dict) -> dict:
    """With a tenth of the updates in which the learning rate warms up."""
    conf = _conf(dense, "scheduler")
    warmup = _number(conf, "warmup_steps")
    if warmup is not None:
        conf["warmup_steps"] = max(warmup // 10, 1)
    return conf


def _optim_conf(dense: dict) -> dict:
    """With the same peak of the learning rate, which noamlr makes of the warm-up too."""
    conf, before = _conf(dense, "optim"), _conf(dense, "scheduler")
    lr, warmup = _number(conf, "lr"), _number(before, "warmup_steps")
    if dense.get("scheduler") == "noamlr" and lr and warmup:
        shorter = _scheduler_conf(dense)["warmup_steps"] / warmup
        conf["lr"] = lr * math.sqrt(shorter)
    return conf

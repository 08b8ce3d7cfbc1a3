"""Make ESPnet know our names, without touching its files."""

import argparse
import dataclasses
import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import humanfriendly
import torch
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.class_choices import ClassChoices
from espnet2.train.trainer import Trainer

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.constraints import CONSTRAINTS, AbsConstraint
from espnet_l0prune.core.controller import SparsityController
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.schedules import SCHEDULERS, AbsSparsityScheduler
from espnet_l0prune.plugin.experiment import (
    TASKS,
    note_input_size_,
    read_mapping,
    refuse_adapters,
)
from espnet_l0prune.plugin.model import L0Distilled
from espnet_l0prune.plugin.network import DECODERS, ENCODERS, L0Network
from espnet_l0prune.plugin.onnx import OnnxDecoder, OnnxEncoder
from espnet_l0prune.plugin.resume import keep_config
from espnet_l0prune.plugin.signature import check_options
from espnet_l0prune.plugin.trainer import L0Trainer, check_resumable, is_first
from espnet_l0prune.plugin.workload import (
    Workload,
    make_budget,
    make_parts,
    sites_of,
)

sparsity_scheduler_choices = ClassChoices(
    "sparsity_scheduler",
    classes=SCHEDULERS,
    type_check=AbsSparsityScheduler,
    default=None,
    optional=True,
)
sparsity_constraint_choices = ClassChoices(
    "sparsity_constraint",
    classes=CONSTRAINTS,
    type_check=AbsConstraint,
    default=None,
    optional=True,
)
OPTIONS = (sparsity_scheduler_choices, sparsity_constraint_choices)


# The classes of `model: l0_distill`; a task without one can only use what was cut.
MODELS = {
    "asr": ("espnet_l0prune.plugin.model", "L0DistillModel"),
    "s2t": ("espnet_l0prune.plugin.model_s2t", "L0DistillS2TModel"),
    "slu": ("espnet_l0prune.plugin.model_slu", "L0DistillSLUModel"),
}


def register(name: str = "asr") -> None:
    """Enter our classes into the registries of a task of ESPnet's, by its short name.

    All of them or none; a second call changes nothing.

    Raises:
        RuntimeError: something else has taken one of the names
    """
    module = importlib.import_module(f"espnet2.tasks.{name}")
    task = getattr(module, TASKS[name])
    entries: list[tuple[str, dict, dict]] = [
        ("encoder", module.encoder_choices.classes, ENCODERS | {"onnx": OnnxEncoder}),
        ("decoder", module.decoder_choices.classes, DECODERS | {"onnx": OnnxDecoder}),
        ("optim", abs_task.optim_classes, {"l0_adamw": L0AdamW}),
    ]
    options = []
    if name in MODELS:
        where, what = MODELS[name]
        model = getattr(importlib.import_module(where), what)
        entries.append(("model", module.model_choices.classes, {"l0_distill": model}))
        there = {option.name: option for option in task.class_choices_list}
        entries.append(("option", there, {option.name: option for option in OPTIONS}))
        options = [option for option in OPTIONS if option.name not in there]
    for what, registry, ours in entries:
        _require_free(what, registry, ours)
    for _, registry, ours in entries:
        registry.update(ours)
    task.class_choices_list += options
    _wrap(task, "build_model", before=inline_structure, after=settle_options)
    _wrap(task, "build_optimizers", before=check_optimizer, after=prepare_training)


def _require_free(what: str, registry: Mapping, ours: Mapping) -> None:
    for name, value in ours.items():
        taken = registry.get(name, value)
        if taken is not value:
            raise RuntimeError(
                f"the {what} name {name!r} is already taken in ESPnet by {taken}; "
                f"expected it to be free for {value}. Remove the other extension, or set "
                "ESPNET_L0PRUNE_AUTOLOAD=0 to run without espnet_l0prune."
            )


def _wrap(task: type[AbsTask], name: str, after, before=None) -> None:
    """Have `before(args)` and `after(cls, args, result, ...)` run around a class method;
    once, also where a task has inherited it."""
    inner = getattr(task, name).__func__
    if getattr(inner, "runs_l0prune", False):
        return

    @functools.wraps(inner)
    def run(cls, args: argparse.Namespace, *rest, **kwargs):
        if before is not None:
            before(args)
        result = inner(cls, args, *rest, **kwargs)
        after(cls, args, result, *rest, **kwargs)
        return result

    wrapped: Any = run
    wrapped.runs_l0prune = True
    setattr(task, name, classmethod(wrapped))


def inline_structure(args: argparse.Namespace) -> None:
    """Replace paths of structures by their content, as ESPnet does with token_list.

    Raises:
        ValueError: a file that cannot be read
    """
    for name in ("encoder_conf", "decoder_conf"):
        conf = getattr(args, name, None) or {}
        path = conf.get("structure")
        if isinstance(path, str):
            expected = "the structure that `espnet-l0prune cut` wrote"
            conf["structure"] = read_mapping(path, f"{name}: structure", expected)


def settle_options(
    task: type[AbsTask], args: argparse.Namespace, model: torch.nn.Module
) -> None:
    """After ESPnet's build_model: keep our options out of `config.yaml` without pruning.

    A machine without the plugin would reject an option even where it is null. With
    pruning, `config.yaml` names the constraint that is the default.
    """
    if getattr(args, "sparsity_scheduler", None) is None:
        for option in OPTIONS:
            for name in (option.name, f"{option.name}_conf"):
                vars(args).pop(name, None)
    elif getattr(args, "sparsity_constraint", None) is None:
        args.sparsity_constraint = "lagrangian"


def check_optimizer(args: argparse.Namespace) -> None:
    """Refuse options that our optimizer does not have, or values that it cannot take.

    Raises:
        ValueError: such an option
    """
    if args.optim == "l0_adamw":
        check_options(L0AdamW, args.optim_conf, "optim_conf")


def prepare_training(
    task: type[AbsTask],
    args: argparse.Namespace,
    optimizers: list[torch.optim.Optimizer],
    model: torch.nn.Module,
) -> None:
    """After ESPnet's build_optimizers: training begins, so bring in what it needs.

    Raises:
        ValueError: a combination of options that cannot prune; see `SparsityController`,
            `Teacher` and `check_resumable`
    """
    name = getattr(args, "sparsity_scheduler", None)
    networks = [getattr(model, part, None) for part in ("encoder", "decoder")]
    ours = name is not None or any(isinstance(part, L0Network) for part in networks)
    if args.collect_stats or not (ours or isinstance(model, L0Distilled)):
        return
    check_trainable(args)
    note_input_size_(model, args)
    gated = any(site.gates for site in sites_of(model))
    if gated or name is not None:
        able = ", ".join(ENCODERS)
        _require(gated, "encoder", args.encoder, f"one of {able}, with some `units`")
        _require(name, "sparsity_scheduler", name, "linear, or `units: []` for no gates")
        _require(isinstance(model, L0Distilled), "model", args.model, "l0_distill")
        _require(isinstance(optimizers[0], L0AdamW), "optim", args.optim, "l0_adamw")
        workload = make_workload(args)
        require_gates_in_scope(model, workload)
        budget = make_budget(model, workload)
        _require_moving_gates(args, budget)
        model.controller = SparsityController(
            budget,
            make_parts(model, workload, budget),
            make_scheduler(args),
            make_constraint(args),
            optimizers[0],
        )
    if isinstance(model, L0Distilled):
        _require(
            args.ngpu <= 1 or getattr(args, "distributed", False),
            "ngpu",
            args.ngpu,
            "1, or more with --multiprocessing_distributed true",
        )
        model.load_teacher_(optimizers[0])
        if task.trainer is Trainer:
            task.trainer = L0Trainer
    if args.output_dir is not None:  # else it is built for other ends than training
        folder = Path(args.output_dir)
        if args.resume:
            check_resumable(folder, args, model)
        if issubclass(task.trainer, L0Trainer) and is_first():
            keep_config(folder)


def check_trainable(args: argparse.Namespace) -> None:
    """Refuse what cannot be trained with gates or a teacher, by the options alone; so
    that `adopt` refuses it too.

    Raises:
        ValueError: such an option
    """
    refuse_adapters(args)
    if getattr(args, "sparsity_scheduler", None) is not None:
        patience = args.patience  # of losses that rise with sparsity
        _require(patience is None, "patience", patience, "null")
        dtype = args.train_dtype
        _require(dtype in ("float32", "float64"), "train_dtype", dtype, "float32")
    if getattr(args, "model", None) != "l0_distill":  # st has none
        return
    deepspeed = getattr(args, "use_deepspeed", False)
    _require(not deepspeed, "use_deepspeed", deepspeed, "false")
    for name in ("postencoder", "postdecoder", "deliberationencoder"):
        more = getattr(args, name, None)  # the last two in slu
        expected = "none, as no teacher follows one: choose an experiment without"
        _require(more is None, name, more, expected)
    durations = args.model_conf.get("transducer_multi_blank_durations")
    expected = "1 or more: the loss of multi-blank transducers has no code for CPUs"
    _require(args.ngpu or not durations, "ngpu", args.ngpu, expected)


def require_gates_in_scope(model: torch.nn.Module, workload: Workload) -> None:
    """Raise ValueError for gates that no budget would hold, or none that one could."""
    for name in ("encoder", "decoder"):
        network, scope = getattr(model, name), workload.scope
        gated = isinstance(network, L0Network) and bool(network.gated_sites())
        if gated and scope not in (name, "model"):
            raise ValueError(
                f"sparsity_scheduler_conf: scope is {scope}, but {name}_conf has units; "
                f"expected scope: model, or {name}_conf: units: []"
            )
        if scope == name and not gated:
            raise ValueError(
                f"sparsity_scheduler_conf: scope is {scope}, but the {name} has no "
                f"gates; expected an l0 {name} with some `units`, or another scope"
            )


def _require_moving_gates(args: argparse.Namespace, budget: Budget) -> None:
    """Raise ValueError for gates that cannot train."""
    for (site, kind), gate in budget.gates.items():
        if not gate.log_alpha.requires_grad:
            raise ValueError(
                f"freeze_param is {args.freeze_param}, which holds the gates of "
                f"{site.name}; expected units without {kind}, or other "
                "parameters to freeze"
            )


def _split_conf(args: argparse.Namespace) -> tuple[type, dict, dict]:
    """The schedule's class, its options, and those of the budget."""
    scheduler = sparsity_scheduler_choices.get_class(str(args.sparsity_scheduler))
    ours = [field.name for field in dataclasses.fields(Workload) if field.name != "fs"]
    where = "sparsity_scheduler_conf"
    conf = getattr(args, where, None) or {}
    check_options(scheduler, conf, where, ours)
    budget = {name: value for name, value in conf.items() if name in ours}
    check_options(Workload, budget, where)
    schedule = {name: value for name, value in conf.items() if name not in ours}
    return scheduler, schedule, budget


def make_scheduler(args: argparse.Namespace) -> AbsSparsityScheduler:
    """The schedule that `sparsity_scheduler` and its `_conf` ask for.

    Raises:
        ValueError: an unknown name or option, or a value that makes no sense
    """
    scheduler, conf, _ = _split_conf(args)
    return scheduler(**conf)


def make_constraint(args: argparse.Namespace) -> AbsConstraint:
    """The constraint that `sparsity_constraint` and its `_conf` ask for.

    Raises:
        ValueError: an unknown name or option, or a value that makes no sense
    """
    constraint = sparsity_constraint_choices.get_class(args.sparsity_constraint)
    conf = args.sparsity_constraint_conf
    check_options(constraint, conf, "sparsity_constraint_conf")
    return constraint(**conf)


def make_workload(args: argparse.Namespace) -> Workload:
    """What `sparsity_scheduler_conf` says about the budget; the defaults without one.

    Raises:
        ValueError: an unknown name or option, or a value that makes no sense
    """
    conf: dict[str, Any] = {}
    if getattr(args, "sparsity_scheduler", None) is not None:
        _, _, conf = _split_conf(args)
    fs = (getattr(args, "frontend_conf", None) or {}).get("fs", Workload.fs)
    return Workload(**conf, fs=humanfriendly.parse_size(str(fs)))


def _require(condition: object, option: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{option} is {value}; pruning expects {option}: {expected}")

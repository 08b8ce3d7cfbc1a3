"""Before a training begins, it gets what pruning needs, or is refused with the reason."""

import argparse
from pathlib import Path
from typing import Any

import torch
from espnet2.tasks.abs_task import AbsTask

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.controller import SparsityController
from espnet_l0prune.core.goal import NETWORKS, Goal
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.plugin.building import note_input_, refuse_adapters
from espnet_l0prune.plugin.counting import make_budget, make_parts, sites_of
from espnet_l0prune.plugin.decay import LinearDecayLR
from espnet_l0prune.plugin.model import L0Distilled
from espnet_l0prune.plugin.models import ALL_NAMES
from espnet_l0prune.plugin.network import ENCODERS, L0Network
from espnet_l0prune.plugin.options import (
    is_pruned,
    make_constraint,
    make_goal,
    make_scheduler,
)
from espnet_l0prune.plugin.resume import keep_config
from espnet_l0prune.plugin.signature import check_options
from espnet_l0prune.plugin.trainer import L0Trainer, check_resumable, is_first

CALLBACK = "espnet_l0prune.plugin.callback"  # the module that ESPnet3's trainings name
STATE = "L0Callback"  # what Lightning's checkpoints name the callback's state


def check_optimizer(args: argparse.Namespace) -> None:
    """Refuse options that our optimizer or scheduler does not have, or cannot take.

    Raises:
        ValueError: such an option
    """
    if args.optim == "l0_adamw":
        check_options(L0AdamW, args.optim_conf, "optim_conf")
    if getattr(args, "scheduler", None) == "l0_lineardecaylr":
        check_options(LinearDecayLR, args.scheduler_conf or {}, "scheduler_conf")


def prepare_training(
    task: type[AbsTask],
    args: argparse.Namespace,
    optimizers: list[torch.optim.Optimizer],
    model: Any,
) -> None:
    """Prepare one of ESPnet's trainings that uses our classes; leave others alone.

    Args:
        task: the task that trains
        args: all options of the training
        optimizers: the optimizers of the model's parameters
        model: the model that `args` describe

    Raises:
        ValueError: see `prepare` and `check_resumable`
    """
    if args.collect_stats or not (is_pruned(args) or needs_preparation(model)):
        return
    prepare(args, model, optimizers[0])
    if args.output_dir is not None:  # otherwise nothing will be trained
        folder = Path(args.output_dir)
        if args.resume:
            check_resumable(folder, args, model)
        if issubclass(task.trainer, L0Trainer) and is_first():
            keep_config(folder)


def needs_preparation(model: Any) -> bool:
    """Return whether a model has networks or a loss of ours, for `prepare`."""
    networks = [getattr(model, part, None) for part in NETWORKS]
    return isinstance(model, L0Distilled) or any(
        isinstance(part, L0Network) for part in networks
    )


def require_prepared(model: Any, *_: object) -> None:
    """Raise ValueError before a training step of a model that nobody has prepared.

    It is a pre-hook of the forward, for trainers that do not call `prepare` themselves.
    """
    if model.training and not getattr(model, "is_prepared", False):
        raise ValueError(
            "trainer: callbacks has nothing that trains gates and loads the teacher; "
            f"expected an entry `_target_: {CALLBACK}.L0Callback`"
        )


def prepare(args: argparse.Namespace, model: Any, optimizer: Any) -> None:
    """Give a model and its optimizer what training needs: gates' controller and teacher.

    Any trainer will do. From then on the model's loss is all that it is trained by, and
    the optimizer's `step` makes whole updates; the trainer calls
    `model.controller.begin_epoch` before each epoch.

    Args:
        args: all options of the training
        model: the model that `args` describe
        optimizer: the optimizer of its parameters

    Raises:
        ValueError: a combination of options that cannot prune; see also
            `SparsityController` and `Teacher`
    """
    check_trainable(args)
    note_input_(model, args)
    gated = any(site.gates for site in sites_of(model))
    if gated or is_pruned(args):
        _require_prunable(args, optimizer, model, gated)
        goal = make_goal(args)
        require_gates_in_scope(model, goal)
        budget = make_budget(model, goal)
        _require_moving_gates(args, budget)
        model.controller = SparsityController(
            budget,
            make_parts(model, goal, budget),
            goal,
            make_scheduler(args),
            make_constraint(args),
            optimizer,
        )
    if isinstance(model, L0Distilled):
        _require(
            args.ngpu <= 1 or getattr(args, "distributed", False),
            "ngpu",
            args.ngpu,
            "1, or more with --multiprocessing_distributed true",
        )
        model.load_teacher_(optimizer)
    model.is_prepared = True


def check_trainable(args: argparse.Namespace) -> None:
    """Refuse options that cannot be trained with gates or a teacher.

    The options alone decide, so that `adopt` can refuse them too.

    Raises:
        ValueError: such an option
    """
    refuse_adapters(args)
    if is_pruned(args):
        patience = args.patience  # losses rise with the sparsity
        _require(patience is None, "patience", patience, "null")
        dtype = args.train_dtype
        _require(dtype in ("float32", "float64"), "train_dtype", dtype, "float32")
    if getattr(args, "model", None) not in ALL_NAMES:
        return
    deepspeed = getattr(args, "use_deepspeed", False)
    _require(not deepspeed, "use_deepspeed", deepspeed, "false")
    decoder = getattr(args, "decoder", None)
    _require(decoder != "linear_decoder", "decoder", decoder, "one that predicts tokens")
    if getattr(args, "md_encoder", None) is not None:  # in st
        first = getattr(args, "extra_asr_decoder", None)
        expected = "transformer_md, as ESPnet's loss of such a model fails with another"
        _require(first == "transformer_md", "extra_asr_decoder", first, expected)
    pruned_loss = args.model_conf.get("use_k2_pruned_loss", False)  # in asr_transducer
    expected = "false: its teacher is compared on the whole lattice"
    _require(not pruned_loss, "use_k2_pruned_loss", pruned_loss, expected)
    durations = args.model_conf.get("transducer_multi_blank_durations")
    expected = "1 or more: the loss of multi-blank transducers has no code for CPUs"
    _require(args.ngpu or not durations, "ngpu", args.ngpu, expected)


def _require_prunable(
    args: argparse.Namespace, optimizer: Any, model: Any, gated: bool
) -> None:
    """Raise ValueError where some options prune and others do not."""
    able, name = ", ".join(ENCODERS), getattr(args, "sparsity_scheduler", None)
    _require(gated, "encoder", args.encoder, f"one of {able}, with some `units`")
    _require(name, "sparsity_scheduler", name, "linear, or `units: []` for no gates")
    stock = getattr(args, "model", None)
    _require(isinstance(model, L0Distilled), "model", stock, "l0_distill")
    _require(isinstance(optimizer, L0AdamW), "optim", args.optim, "l0_adamw")


def require_gates_in_scope(model: Any, goal: Goal) -> None:
    """Raise ValueError for gates outside the goal's scope, or a scope without gates."""
    for name in NETWORKS:
        network, scope = getattr(model, name, None), goal.scope
        gated = isinstance(network, L0Network) and bool(network.gated_sites())
        if gated and scope not in (name, "model"):
            raise ValueError(
                f"sparsity_goal_conf: scope is {scope}, but {name}_conf has units; "
                f"expected scope: model, or {name}_conf: units: []"
            )
        if scope == name and not gated:
            raise ValueError(
                f"sparsity_goal_conf: scope is {scope}, but the {name} has no "
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


def _require(condition: object, option: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{option} is {value}; pruning expects {option}: {expected}")

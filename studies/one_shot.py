"""Choose units of a dense experiment at once, and write what `cut` takes."""

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from espnet2.train.distributed_utils import DistributedOption
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump
from torch import nn

from espnet_l0prune.core.files import beside, save
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.gates import LogAlpha
from espnet_l0prune.core.importance import IMPORTANCES, Batches
from espnet_l0prune.core.selection import select
from espnet_l0prune.plugin.building import build_model, task_of
from espnet_l0prune.plugin.counting import evaluation, make_budget, sites_of
from espnet_l0prune.plugin.experiment import load_experiment, load_state
from espnet_l0prune.plugin.options import make_goal
from espnet_l0prune.plugin.prepare import require_gates_in_scope

NETWORKS = ("encoder", "encoder_conf", "decoder", "decoder_conf")
DATA = ("train_data_path_and_name_and_type", "train_shape_file")
MODEL = ("model", "model_conf")  # which names the teacher
PRUNING = (*NETWORKS, *DATA, *MODEL, "sparsity_goal", "sparsity_scheduler")


def gate_names(model: nn.Module) -> set[str]:
    """What the state of a gated model has beside that of the dense one."""
    return {name for name, p in model.named_parameters() if isinstance(p, LogAlpha)}


def gated(
    dense: Path, checkpoint: str, conf: Mapping
) -> tuple[nn.Module, argparse.Namespace]:
    """A dense experiment's model with open gates, in evaluation mode.

    Args:
        dense: its folder
        conf: what a pruning configuration says of networks and budget, and of the data
            where they are elsewhere now

    Raises:
        ValueError: files that are missing or damaged, networks that do not fit, gates
            that no budget would hold, a budget `per` part, or none
    """
    if conf.get("sparsity_scheduler") is None:
        raise ValueError(
            "the pruning configuration has no sparsity_scheduler; expected one, and a "
            "sparsity_goal_conf with the target"
        )
    trained, args = load_experiment(dense, checkpoint)
    vars(args).update(
        (name, value) for name, value in conf.items() if name.startswith(PRUNING)
    )
    model = build_model(args)
    goal = make_goal(args)
    require_gates_in_scope(model, goal)
    if goal.per is not None:
        raise ValueError(
            f"sparsity_goal_conf: per is {goal.per}; expected null: units are "
            "chosen at once over the whole scope"
        )
    own, gates = model.state_dict(), gate_names(model)
    state = {name: own[name] for name in gates} | trained.state_dict()
    load_state(model, state, dense / checkpoint)
    return model.eval(), args


def read_batches(args: argparse.Namespace, count: int) -> Batches:
    """The first batches of an experiment's training data, in the order of its seed."""
    factory = task_of(args).build_iter_factory(args, DistributedOption(), mode="train")
    return [batch for _, batch in itertools.islice(factory.build_iter(1), count)]


def prune_at_once(
    dense: Path,
    checkpoint: str,
    conf: Mapping,
    name: str,
    out: Path,
    batches: int = 8,
    seed: int = 0,
) -> dict[str, float]:
    """Write an experiment whose gates are decided by an importance, for `cut` to take.

    Args:
        dense: the trained experiment, with its configuration and its data
        conf: of a pruning: networks, budget, and data if they are elsewhere now
        name: of `IMPORTANCES`
        out: a new folder: config.yaml and latest.pth
        batches: of the training data to look at
        seed: of the choice of batches, and of what is random

    Returns:
        the sparsity in each cost

    Raises:
        ValueError: see `gated`; an `out` that exists; units that this importance cannot
            rank; a budget that the units cannot reach
    """
    if out.exists():
        raise ValueError(f"{out} exists; expected a new folder")
    torch.manual_seed(seed)
    model, args = gated(dense, checkpoint, conf)
    args.seed = seed
    goal = make_goal(args)
    budget, targets = make_budget(model, goal), goal.targets
    with evaluation(model):
        scores = IMPORTANCES[name](budget, model, read_batches(args, batches), targets)
    decide_(sites_of(model), select(budget, targets, scores=scores))
    with beside(out) as folder:
        made = folder / "made"
        made.mkdir()
        (made / "config.yaml").write_text(yaml_no_alias_safe_dump(vars(args)), "utf-8")
        save(model.state_dict(), made / "latest.pth")
        made.rename(out)
    return budget.actual()

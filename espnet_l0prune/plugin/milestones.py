"""At the end of each milestone's hold, a training writes a network of that sparsity.

It is the network that the training itself would be if its gates were fixed there. The
training goes on as if nothing had been: what fixes the gates is computed beside its
weights, the batch norms' statistics are gathered in tensors of their own, and the states
of all random generators are put back.
"""

import itertools
import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from espnet2.torch_utils.device_funcs import to_device
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from espnet_l0prune.core.batch_norm import batch_norms
from espnet_l0prune.core.controller import SparsityController
from espnet_l0prune.core.files import replace_all, save
from espnet_l0prune.core.freezing import frozen, state_dict
from espnet_l0prune.plugin.counting import evaluation
from espnet_l0prune.plugin.experiment import read_config
from espnet_l0prune.plugin.weight_names import portable

BATCHES = 20  # of the epoch's, from which the batch norms take their statistics
Batches = Iterable[tuple[list[str], dict[str, Tensor]]]


def milestone_folder(experiment: Path, milestone: float) -> Path:
    """Return the folder of a milestone's network in the folder of the training."""
    return experiment / f"milestone_{milestone}"


def check_batches(controller: SparsityController, batches: Batches) -> None:
    """Raise ValueError for batches that cannot be read a second time, if that is needed.

    Args:
        controller: that of the training
        batches: what the training iterates over in an epoch
    """
    if not controller.scheduler.pauses or not _norms(controller):
        return
    if isinstance(batches, Iterator):  # what is read of it, the training would miss
        raise ValueError(
            "sparsity_scheduler_conf: milestones is "
            f"{controller.scheduler.milestones}, but the iterator (multiple_iterator, "
            "chunk) can be read only once, and the batch norms of each milestone's "
            "network take their statistics from the training's batches; expected "
            "iterator_type: sequence, or no milestones"
        )


@contextmanager
def writing_milestones(
    experiment: Path, model: Any, controller: SparsityController, batches: Batches
) -> Iterator[None]:
    """Write the network of each milestone that is passed within a `with` block.

    Args:
        experiment: the folder of the training, which has its config.yaml
        model: the gated model
        controller: leads its gates
        batches: what the training iterates over in an epoch; see `check_batches`
    """

    def after_step(optimizer: Optimizer, *_: Any) -> None:
        milestone = controller.scheduler.milestone(controller.update)
        if milestone is not None:
            write_milestone(experiment, milestone, model, controller, batches)

    handle = controller.optimizer.register_step_post_hook(after_step)
    try:
        yield
    finally:
        handle.remove()


def write_milestone(
    experiment: Path,
    milestone: float,
    model: Any,
    controller: SparsityController,
    batches: Batches,
) -> None:
    """Write the network that a training would be if its gates were fixed now.

    It is an experiment that `espnet-l0prune cut` takes, in a folder of the training's. A
    file there takes its place once all are whole; after a kill, the training that is
    resumed writes them again.

    Args:
        experiment: the folder of the training, which has its config.yaml
        milestone: the sparsity that the folder is named after
        model: the gated model
        controller: leads its gates
        batches: what the training iterates over in an epoch; see `check_batches`

    Raises:
        OSError: the disk is full, or the folder cannot be written for another reason
    """
    targets = controller.scheduler.targets(controller.update, controller.goal.targets)
    config = vars(read_config(experiment / "config.yaml"))
    schedule = {**config["sparsity_scheduler_conf"]}
    for name in ("milestones", "target"):  # earlier versions had the target here
        schedule.pop(name, None)
    goal = {**(config.get("sparsity_goal_conf") or {}), "target": targets}
    config |= {"sparsity_scheduler_conf": schedule, "sparsity_goal_conf": goal}
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    state = portable(model, fixed_state(model, controller, batches))
    folder = milestone_folder(experiment, milestone)
    files = {
        folder / "config.yaml": lambda path: path.write_text(text, "utf-8"),
        folder / "model.pth": lambda path: save(state, path),
    }
    replace_all(files)
    logging.info(f"Milestone {milestone}, at update {controller.update}: {folder}")


@torch.no_grad()
def fixed_state(
    model: Any, controller: SparsityController, batches: Batches
) -> dict[str, Tensor]:
    """Return the state dict that a model would have if its gates were fixed now.

    The batch norms' statistics are plain means over some of the batches, which the fixed
    network reads in evaluation mode, but for these norms. The model, its batch norms and
    the random generators are left as they are, to the bit.

    Args:
        model: the gated model
        controller: leads its gates
        batches: what the training iterates over in an epoch; see `check_batches`
    """
    changed = frozen(controller.budget.sites, controller.plan())
    state = {name: x.clone() for name, x in state_dict(model, changed).items()}
    norms = _norms(controller)
    if not norms:
        return state
    device = next(model.parameters()).device
    with _random_kept(device), evaluation(model), _alone(model), _averaging(norms):
        for name, module in model.named_modules():
            if module in norms:
                state[f"{name}.num_batches_tracked"].zero_()
        for names, batch in itertools.islice(iter(batches), BATCHES):
            read = {**to_device(batch, str(device)), "utt_id": names}
            functional_call(model, state, kwargs=read)
    return state


def _norms(controller: SparsityController) -> set[nn.Module]:
    """Return the batch norms that see the gates, whose statistics change with them."""
    return {*batch_norms(site.module for site in controller.budget.sites)}


@contextmanager
def _alone(model: Any) -> Iterator[None]:
    """Let a model be without teacher and controller within a `with` block."""
    others = {name: getattr(model, name) for name in ("teacher", "controller")}
    for name in others:
        setattr(model, name, None)
    try:
        yield
    finally:
        for name, other in others.items():
            setattr(model, name, other)


@contextmanager
def _averaging(norms: Iterable[Any]) -> Iterator[None]:
    """Let batch norms in evaluation gather plain means within a `with` block."""
    momenta = {norm: norm.momentum for norm in norms}
    for norm in momenta:
        norm.momentum = None
        norm.training = True
    try:
        yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


@contextmanager
def _random_kept(device: torch.device) -> Iterator[None]:
    """Put the states of all random generators back after a `with` block."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)

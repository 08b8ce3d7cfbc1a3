"""This is ESPnet's trainer for runs that are pruned; it never loses a finished epoch.

ESPnet writes a checkpoint in place, so a kill in the middle leaves half a file. Here each
epoch begins by copying the last whole checkpoint, and resuming takes the copy where the
newer one is damaged.
"""

import contextlib
import logging
import shutil
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from espnet2.schedulers.abs_scheduler import AbsScheduler, AbsValEpochStepScheduler
from espnet2.train.trainer import Trainer

from espnet_l0prune.core.files import is_whole, replace, save
from espnet_l0prune.plugin.decay import fit_decays_
from espnet_l0prune.plugin.milestones import check_batches, writing_milestones
from espnet_l0prune.plugin.reporter import reported_types
from espnet_l0prune.plugin.resume import check_options, forget_config, restore_config
from espnet_l0prune.plugin.weight_names import portable

PREVIOUS = "checkpoint.previous.pth"


class L0Trainer(Trainer):
    """An `L0Trainer` trains `l0_distill` models under a sparsity constraint."""

    @classmethod
    def run(cls, *, trainer_options, **kwargs):
        """Train; if no epoch was begun, restore the earlier config.yaml."""
        try:
            super().run(trainer_options=trainer_options, **kwargs)
        finally:
            if is_first():
                restore_config(Path(trainer_options.output_dir))

    @classmethod
    def train_one_epoch(
        cls, model, iterator, optimizers, options, distributed_option, **kwargs
    ):
        """Keep the last checkpoint, fit the schedule to the run, then train.

        See `SparsityController.begin_epoch` and `check_batches` for what may be raised.
        """
        folder = Path(options.output_dir)
        network = getattr(model, "module", model)
        # in a notebook, a model without a controller may follow a pruned one
        controller = getattr(network, "controller", None)
        done = kwargs["reporter"].get_epoch() - 1
        try:
            updates = len(iterator) // options.accum_grad
        except TypeError:  # a generator has no length
            updates = None
        fit_decays_(kwargs["schedulers"], updates, options.max_epoch - done)
        if controller is not None:
            controller.begin_epoch(updates, options.max_epoch, done)
            check_batches(controller, iterator)
            if not controller.on_budget:
                forget_plateaus_(kwargs["schedulers"])
        first = not distributed_option.distributed or distributed_option.dist_rank == 0
        if first:
            forget_config(folder)
            keep_checkpoint(folder, done)
        # a resumed run would not have what accum_grad left over from the last epoch
        for optimizer in optimizers:
            optimizer.zero_grad()
        with contextlib.ExitStack() as within:
            if controller is not None and first:
                run = folder, network, controller, iterator
                within.enter_context(writing_milestones(*run))
            invalid = super().train_one_epoch(
                model=model,
                iterator=iterator,
                optimizers=optimizers,
                options=options,
                distributed_option=distributed_option,
                **kwargs,
            )
        if controller is not None and first and options.use_matplotlib:
            from espnet_l0prune.plugin.structure_plot import plot_epoch

            plot_epoch(
                network,
                kwargs["reporter"].get_epoch(),
                folder / "structure",
                kwargs.get("summary_writer"),
                options.use_wandb,
            )
        return invalid

    @staticmethod
    def resume(checkpoint, model, reporter, *args, **kwargs):
        """Go on from the newest whole checkpoint, and restore what a kill has damaged.

        Raises:
            ValueError: see `SparsityController.check_settings`
            RuntimeError: see `choose_checkpoint`
        """
        checkpoint = Path(checkpoint)
        chosen = choose_checkpoint(checkpoint)
        if chosen != checkpoint:
            then = f"resuming from {chosen}, one epoch earlier" if chosen else "anew"
            cause = "as after a kill in the middle of saving"
            logging.warning(f"{checkpoint} is damaged, {cause}: {then}")
        if chosen is None:
            return
        with torch.serialization.safe_globals(reported_types()):
            Trainer.resume(chosen, model, reporter, *args, **kwargs)
        epoch = checkpoint.with_name(f"{reporter.get_epoch()}epoch.pth")
        if is_first() and not is_whole(epoch):  # it was killed after the checkpoint
            logging.warning(f"{epoch} is damaged or missing: written again")
            replace(epoch, lambda path: save(model.state_dict(), path))
            latest = checkpoint.with_name("latest.pth")
            replace(latest, lambda path: path.symlink_to(epoch.name))


def is_first() -> bool:
    """Return whether this process is the first, or the only one, of a training."""
    return not torch.distributed.is_initialized() or not torch.distributed.get_rank()


def forget_plateaus_(schedulers: Sequence[AbsScheduler | None]) -> None:
    """Reset schedulers that wait for a figure of the validation to improve.

    While the target sparsity rises, the figure may get worse although nothing is wrong.
    """
    for scheduler in schedulers:
        if isinstance(scheduler, AbsValEpochStepScheduler):
            scheduler._reset()  # type: ignore[attr-defined]


def check_resumable(folder: Path, args: Namespace, model: torch.nn.Module) -> None:
    """Refuse to continue another run, before ESPnet overwrites its config.yaml.

    Args:
        folder: the run's folder
        args: all options of the call that resumes the run
        model: the model built from them

    Raises:
        ValueError: a checkpoint of another architecture, with the first difference, or of
            other settings or options
        RuntimeError: see `choose_checkpoint`
    """
    checkpoint = folder / "checkpoint.pth"
    chosen = choose_checkpoint(checkpoint) if checkpoint.exists() else None
    if chosen is None:
        return
    states = torch.load(chosen, map_location="meta", weights_only=False)
    built, saved = (
        {name: tuple(value.shape) for name, value in state.items()}
        for state in (portable(model), portable(model, states["model"]))
    )
    for name in {**saved, **built}:
        if built.get(name) != saved.get(name):
            raise ValueError(
                f"{chosen} is of another architecture: {name} has shape "
                f"{saved.get(name, 'none')} there, {built.get(name, 'none')} in this "
                "model. Resume with the configuration that it was trained with, or "
                "train into another --output_dir."
            )
    controller = getattr(model, "controller", None)
    for group in states["optimizers"][0]["param_groups"]:
        if controller is not None and "settings" in group:
            controller.check_settings(group["settings"])
    if is_first():  # this process will write config.yaml
        check_options(folder, args)


def keep_checkpoint(folder: Path, epochs: int) -> None:
    """Copy the last epoch's checkpoint, if it is whole, before the next is written.

    Args:
        folder: the run's folder
        epochs: number of epochs that this run has finished; before the first, the
            checkpoint is another run's
    """
    checkpoint = folder / "checkpoint.pth"
    if not epochs:
        (folder / PREVIOUS).unlink(missing_ok=True)
    elif is_whole(checkpoint):
        replace(folder / PREVIOUS, lambda path: shutil.copyfile(checkpoint, path))


def choose_checkpoint(checkpoint: Path) -> Path | None:
    """Return the newest whole checkpoint, from which to resume.

    It is None if the run was killed while it saved its first epoch.

    Raises:
        RuntimeError: no checkpoint is whole, although epochs were finished
    """
    if is_whole(checkpoint):
        return checkpoint
    previous = checkpoint.with_name(PREVIOUS)
    if is_whole(previous):
        return previous
    if not list(checkpoint.parent.glob("*epoch.pth")):
        return None
    raise RuntimeError(
        f"{checkpoint} is damaged and there is no whole {PREVIOUS} beside it; expected "
        "a checkpoint that ESPnet saved. Remove both to begin again (the epochs' models "
        "stay), or train into another --output_dir."
    )

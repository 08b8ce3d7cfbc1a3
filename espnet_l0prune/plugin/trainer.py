"""ESPnet's trainer, for runs that are pruned: nothing that was finished is ever lost.

ESPnet writes a checkpoint in place, so that a kill in the middle leaves half a file.
Here each epoch begins with a copy of the last whole checkpoint, and resuming takes it
where the newer one is damaged.
"""

import logging
import shutil
from pathlib import Path

import torch
from espnet2.train.trainer import Trainer

from espnet_l0prune.core.files import is_whole, replace, save

PREVIOUS = "checkpoint.previous.pth"


class L0Trainer(Trainer):
    """The trainer of `l0_distill` models under a sparsity constraint."""

    @classmethod
    def train_one_epoch(
        cls, model, iterator, optimizers, options, distributed_option, **kwargs
    ):
        """Keep the last checkpoint, then train; see `SparsityController.begin_epoch`."""
        # in a notebook, another model may come after the pruned one
        controller = getattr(getattr(model, "module", model), "controller", None)
        done = kwargs["reporter"].get_epoch() - 1
        if controller is not None:
            try:
                updates = len(iterator) // options.accum_grad
            except TypeError:  # a generator, whose length nobody knows
                updates = None
            controller.begin_epoch(updates, options.max_epoch, done)
        first = not distributed_option.distributed or distributed_option.dist_rank == 0
        if first:
            keep_checkpoint(Path(options.output_dir), done)
        # what accum_grad left of the last epoch would be gone in a resumed run
        for optimizer in optimizers:
            optimizer.zero_grad()
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
                getattr(model, "module", model),
                kwargs["reporter"].get_epoch(),
                Path(options.output_dir) / "structure",
                kwargs.get("summary_writer"),
                options.use_wandb,
            )
        return invalid

    @staticmethod
    def resume(checkpoint, model, reporter, *args, **kwargs):
        """Go on from the newest whole checkpoint; write again what a kill left out.

        Raises:
            ValueError: see `SparsityController.check_settings`
            RuntimeError: see `choose_checkpoint`
        """
        checkpoint = Path(checkpoint)
        chosen = choose_checkpoint(checkpoint)
        if chosen is None:
            return
        Trainer.resume(chosen, model, reporter, *args, **kwargs)
        epoch = checkpoint.with_name(f"{reporter.get_epoch()}epoch.pth")
        first = not torch.distributed.is_initialized() or not torch.distributed.get_rank()
        if first and not is_whole(epoch):  # killed between the checkpoint and this
            logging.warning(f"{epoch} is damaged or missing: written again")
            replace(epoch, lambda path: save(model.state_dict(), path))
            latest = checkpoint.with_name("latest.pth")
            replace(latest, lambda path: path.symlink_to(epoch.name))


def check_resumable(checkpoint: Path, model: torch.nn.Module) -> None:
    """Before ESPnet writes config.yaml anew, refuse to go on with another run.

    None that is whole is left to `L0Trainer.resume`.

    Raises:
        ValueError: a checkpoint of another architecture, with the first difference, or
            of other settings
    """
    found = filter(is_whole, (checkpoint, checkpoint.with_name(PREVIOUS)))
    chosen = next(found, None) if checkpoint.exists() else None
    if chosen is None:
        return
    states = torch.load(chosen, map_location="meta", weights_only=False)
    ours, theirs = (
        {name: tuple(value.shape) for name, value in state.items()}
        for state in (model.state_dict(), states["model"])
    )
    for name in {**theirs, **ours}:
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{chosen} is of another architecture: {name} has shape "
                f"{theirs.get(name, 'none')} there, {ours.get(name, 'none')} in this "
                "model. Resume with the configuration that it was trained with, or "
                "train into another --output_dir."
            )
    controller = getattr(model, "controller", None)
    for group in states["optimizers"][0]["param_groups"]:
        if controller is not None and "settings" in group:
            controller.check_settings(group["settings"])


def keep_checkpoint(folder: Path, epochs: int) -> None:
    """Copy the last epoch's checkpoint, if it is whole, before the next is written.

    Args:
        epochs: that this run has finished; before the first, what is there is of another
    """
    checkpoint = folder / "checkpoint.pth"
    if not epochs:
        (folder / PREVIOUS).unlink(missing_ok=True)
    elif is_whole(checkpoint):
        replace(folder / PREVIOUS, lambda path: shutil.copyfile(checkpoint, path))


def choose_checkpoint(checkpoint: Path) -> Path | None:
    """The checkpoint to resume from: the newest that is whole.

    None where the run was killed while it saved its first epoch.

    Raises:
        RuntimeError: none is whole, though epochs were finished
    """
    if is_whole(checkpoint):
        return checkpoint
    previous = checkpoint.with_name(PREVIOUS)
    if is_whole(previous):
        logging.warning(
            f"{checkpoint} is damaged, as after a kill in the middle of saving: resuming "
            f"from {previous}, one epoch earlier"
        )
        return previous
    if not list(checkpoint.parent.glob("*epoch.pth")):
        logging.warning(
            f"{checkpoint} is damaged, as after a kill in the middle of saving the first "
            "epoch: beginning anew"
        )
        return None
    raise RuntimeError(
        f"{checkpoint} is damaged and there is no whole {PREVIOUS} beside it; expected "
        "a checkpoint that ESPnet saved. Remove both to begin again (the epochs' models "
        "stay), or train into another --output_dir."
    )

"""Here it is said how fast gates move, and whether a run gives them time to close."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.optim import L0AdamW, Progress
from espnet_l0prune.core.phases import AbsSparsityScheduler
from espnet_l0prune.core.projected import FARTHEST


def fit_to_run_(
    scheduler: AbsSparsityScheduler,
    progress: Progress,
    updates: int | None,
    epochs: int,
    epoch: int,
) -> None:
    """Check a schedule before each epoch, and tell one in epochs how long these are.

    Args:
        scheduler: the run's schedule; takes the epoch's length
        progress: the run's progress; takes the length too
        updates: number of updates in this epoch; None where it is not known beforehand
        epochs: number of epochs in the whole run
        epoch: number of epochs finished before this one

    Raises:
        ValueError: a run that ends before the frozen network is trained; an epoch without
            an update; a schedule in epochs of a length that is not known, or that was
            another one before the run was resumed
    """
    if updates is None:
        if scheduler.in_epochs:
            raise ValueError(
                "in_epochs is true, but the iterator (multiple_iterator, chunk) has "
                "epochs of unknown length; expected warmup_steps, ramp_steps and "
                "hold_steps in updates"
            )
        if not epoch or not progress.update:
            return
        updates = -(-progress.update // epoch)  # the mean of earlier epochs, rounded up
    if not updates:
        raise ValueError(
            "an epoch has fewer batches than accum_grad, so that no update is made; "
            "expected accum_grad of at most the number of batches"
        )
    if scheduler.in_epochs:
        if progress.update and updates != scheduler.scale:
            raise ValueError(
                f"an epoch has {updates} updates, but had {scheduler.scale} when "
                "the run began; the schedule, which is in epochs, would jump. "
                "Resume with the same data, batches and accum_grad."
            )
        scheduler.fit_(updates)
        progress.scale = updates
    needed = scheduler.frozen_begins
    last = progress.update + updates * (epochs - epoch)  # some may have been skipped
    if needed >= last:
        enough = epoch + (needed - progress.update) // updates + 1
        most = max(last - updates, 1) / scheduler.scale
        raise ValueError(
            f"the gates freeze after {needed} updates (warmup, ramp and hold), and "
            "the frozen network must be trained too, but this run ends after "
            f"{last}: {epochs} epochs of {updates}. Raise max_epoch to "
            f"{enough}, or shorten warmup_steps, ramp_steps and hold_steps to "
            f"{most:g} {'epochs' if scheduler.in_epochs else 'updates'} in all."
        )


QUICK = 4  # how often the loss alone could take a gate to closed on the ramp
LARGEST = 1.0  # step of a log_alpha


@dataclass(frozen=True)
class Pace:
    """A `Pace` says how far gates may move in an update, and what time they have.

    Attributes:
        size: about how far the loss may move a log_alpha at most
        left: number of updates, this one included, in which gates are to be decided; None
            while the targets rise
        farthest: how sure of a gate one may become meanwhile, as a logit of the
            probability that it is open
    """

    size: float
    left: int | None
    farthest: float = FARTHEST


def pace_of(
    scheduler: AbsSparsityScheduler,
    update: int,
    gates: Iterable[HardConcrete],
    optimizer: L0AdamW,
) -> Pace:
    """Return the pace after some updates, by the length of the ramp.

    Gates are decided one update before they are fixed, so that this can be seen. At a
    milestone they are moved apart too, but they are to go on from there: none becomes
    surer than a new gate is, which the ramp moves.

    Args:
        scheduler: the run's schedule, fitted to the run
        update: number of updates made
        gates: all gates that train
        optimizer: says how many updates move them
    """
    gates = list(gates)
    way = QUICK * optimizer.turns * max(gate.way_to_close for gate in gates)
    updates = scheduler.ramp_updates or scheduler.hold_updates
    size, ends = min(way / updates, LARGEST), scheduler.hold_ends(update)
    if ends is None:
        return Pace(size, left=None)
    left = -(-max(ends - update, 1) // optimizer.turns)
    if ends == scheduler.frozen_begins:
        return Pace(size, left)
    new = min(gate.open_probability for gate in gates)
    return Pace(size, left, farthest=math.log(new / (1 - new)))


def check_milestones(
    scheduler: AbsSparsityScheduler,
    gates: Iterable[HardConcrete],
    optimizer: L0AdamW,
    projects: bool,
) -> None:
    """Raise ValueError for milestones that are closer than the gates can settle.

    From the end of one hold to the end of the next, a gate must have the time to close.

    Args:
        scheduler: the run's schedule, fitted to the run
        gates: all gates that train
        optimizer: moves the gates
        projects: whether they are moved by a projection, and not by the optimizer
    """
    if len(scheduler.milestones) < 2:
        return
    if projects:
        way = max(gate.way_to_close for gate in gates)
        needed = optimizer.turns * math.ceil(way / LARGEST)
    else:
        needed = updates_to_close(gates, optimizer)
    ends = [end for _, end in scheduler.pauses] + [scheduler.frozen_begins]
    begins = scheduler.ramp_begins, *ends
    for share, begin, end in zip(scheduler.milestones, begins, ends, strict=False):
        if end - begin < needed:
            raise ValueError(
                f"sparsity_scheduler_conf: the milestone {share} has {end - begin} "
                "updates, ramp and hold, and to close a gate takes some "
                f"{needed}; expected longer ramp_steps or hold_steps, or fewer milestones"
            )


def updates_to_close(gates: Iterable[HardConcrete], optimizer: L0AdamW) -> int:
    """Return how many updates take a gate from its start to 0 if all go the same way."""
    return optimizer.updates_to_move(max(gate.way_to_close for gate in gates))


def shortage(
    scheduler: AbsSparsityScheduler, gates: Iterable[HardConcrete], optimizer: L0AdamW
) -> str | None:
    """Describe what is wrong where the gates are frozen before any of them can close.

    Args:
        scheduler: the run's schedule, fitted to the run
        gates: all gates that train
        optimizer: moves the gates

    Returns:
        how many updates there are and how many it takes, with two remedies; None where
        there are enough
    """
    trained = scheduler.frozen_begins - scheduler.ramp_begins
    needed, rate = updates_to_close(gates, optimizer), optimizer.gate_lr
    if trained >= needed:
        return None
    length = f"{needed} updates"
    if scheduler.in_epochs:
        length = f"{needed / scheduler.scale:.3g} epochs"
    return (
        f"The gates train for {trained} updates (ramp and hold), but to close one takes "
        f"some {needed} at gate_lr {rate:g}: what is open when they freeze is closed by "
        f"force. Raise gate_lr in optim_conf to {rate * needed / trained:.2g}, or train "
        f"for longer, with ramp_steps and hold_steps of {length} in all."
    )

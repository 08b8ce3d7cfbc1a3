"""Here it is said in sentences when a pruning does what, before it is trained."""

import copy
import math
from collections.abc import Mapping

from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.pace import shortage, updates_to_close
from espnet_l0prune.core.phases import AbsSparsityScheduler

FINE = 1_000_000  # updates in an epoch whose length is not known


def phases(
    scheduler: AbsSparsityScheduler,
    targets: Mapping[str, float],
    epochs: int,
    updates: int | None,
) -> list[str]:
    """Describe the phases of a pruning, and how the targets rise in the second.

    Args:
        scheduler: the schedule, fitted to the epochs' length if it is known
        targets: sparsities to reach in the end, by cost
        epochs: number of epochs
        updates: number of updates in an epoch; None where it is not known
    """
    schedule, unit, parts, total = copy.copy(scheduler), "epochs", FINE, float(epochs)
    if updates or not scheduler.in_epochs:
        unit, parts = "updates", 1
        total = float(epochs * updates) if updates else math.inf
    else:
        schedule.scale = FINE
    lengths = schedule.ramp_begins, schedule.ramp_updates, schedule.hold_updates
    warmup, ramp, hold = (f"{round(length / parts, 2):,g}" for length in lengths)
    left = total - schedule.frozen_begins / parts
    rest = f"{round(left, 2):,g} {unit}" if math.isfinite(left) else "the rest"
    said = [
        f"The network is dense for {warmup} {unit}, loses units for {ramp}, keeps its "
        f"size while the gates settle for {hold}, and is trained with fixed gates for "
        f"{rest}."
    ]
    times = [begin for begin, _ in schedule.pauses]
    if times:
        said.append(
            f"It also keeps its size for {hold} {unit} at each milestone, and a network "
            "of that size is written."
        )
        stations = schedule.stations(targets)
    elif schedule.ramp_updates:
        quarters = (0.25, 0.5, 0.75)
        times = [round(lengths[0] + lengths[1] * done) for done in quarters]
        stations = [
            {cost: schedule.sparsity(target, done) for cost, target in targets.items()}
            for done in quarters
        ]
        stations.append(dict(targets))
    else:
        return said
    times = [*times, schedule.hold_begins]
    digits = 2 if unit == "epochs" else 0
    when = _listed([f"{round(time / parts, digits):,g}" for time in times])
    for cost in targets:
        rising = _listed([f"{100 * station[cost]:.3g}" for station in stations])
        said.append(f"The target in {cost} is {rising}% after {when} {unit}.")
    return said


def _listed(words: list[str]) -> str:
    """Return words with commas, and "and" before the last."""
    return f"{', '.join(words[:-1])} and {words[-1]}"


def pace(
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
    needed, epochs = (
        updates_to_close(gates, optimizer),
        scheduler.length - scheduler.lengths[0],
    )
    return [
        f"To close a gate takes some {needed} updates. Ramp and hold have {epochs:g} "
        f"epochs: where one has fewer than {math.ceil(needed / epochs)} updates, give "
        "more --epochs."
    ]

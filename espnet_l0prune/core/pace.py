"""Whether a schedule leaves the gates the time to close by themselves."""

from collections.abc import Iterable

from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.schedules import AbsSparsityScheduler


def updates_to_close(gates: Iterable[HardConcrete], optimizer: L0AdamW) -> int:
    """How many updates take a gate from its start to 0, when all go the same way."""
    return optimizer.updates_to_move(max(gate.way_to_close for gate in gates))


def shortage(
    scheduler: AbsSparsityScheduler, gates: Iterable[HardConcrete], optimizer: L0AdamW
) -> str | None:
    """What is wrong with a schedule in which no gate can close before the gates freeze.

    Args:
        scheduler: its lengths in updates are known

    Returns:
        the updates that there are and that would do, with the remedy for one of both;
        None where there are enough
    """
    there = scheduler.frozen_begins - scheduler.ramp_begins
    needed, rate = updates_to_close(gates, optimizer), optimizer.pruning["gate_lr"]
    if there >= needed:
        return None
    length = f"{needed} updates"
    if scheduler.in_epochs:
        length = f"{needed / scheduler.scale:.3g} epochs"
    return (
        f"The gates train for {there} updates (ramp and hold), but to close one takes "
        f"some {needed} at gate_lr {rate:g}: what is open when they freeze is closed by "
        f"force. Raise gate_lr in optim_conf to {rate * needed / there:.2g}, or train "
        f"for longer, with ramp_steps and hold_steps of {length} in all."
    )

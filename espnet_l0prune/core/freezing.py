"""Freezing fixes the gates of a network to 0 or 1, as a plan says.

Computing the frozen values does not change the network. So it can be done any number of
times while the network trains, for one plan or for several. Another step puts the values
into the network, or into a state dict::

    plan = select_each(parts, {"params": 0.5})
    state = frozen(sites, plan)
    freeze_(state)                   freezes the network itself, or
    state_dict(network, state)       returns the state dict of a frozen copy
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from espnet_l0prune.core.hooks import spread
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.sites import Site

State = dict[Tensor, Tensor]  # from a network's tensors to their frozen values


@torch.no_grad()
def frozen(sites: Sequence[Site], plan: Plan) -> State:
    """Return the values of a network's tensors once its gates are fixed to 0 or 1.

    The soft value of a gate that stays open is multiplied into the weights. So what the
    network computes only changes by the units that the plan closes, and by the gates of
    whole blocks, which have no weight to take their value.

    Args:
        sites: the sites that are frozen
        plan: the units to keep; sites and kinds that it does not name keep all of theirs

    Raises:
        ValueError: a plan of another network
    """
    plan.check(sites)
    state: State = {}
    for site in sites:
        values = {}
        for kind, gate in site.gates.items():
            keep = torch.zeros_like(gate.log_alpha, dtype=torch.bool)
            keep[plan.units(site, kind)] = True
            values[kind] = torch.where(keep, gate.values(), 1.0)
            state[gate.log_alpha] = gate.decided(keep)
        for claim in site.claims():
            if claim.folds and claim.kind in values:
                tensor = getattr(claim.module, claim.tensor)
                shape = [1] * tensor.dim()
                shape[claim.dim] = -1
                z = spread(values[claim.kind], claim.inner, claim.outer)
                state[tensor] = state.get(tensor, tensor) * z.view(shape).to(tensor.dtype)
    return state


@torch.no_grad()
def freeze_(state: State) -> None:
    """Copy the frozen values into the tensors that they belong to."""
    for tensor, value in state.items():
        tensor.copy_(value)


def decide_(sites: Sequence[Site], plan: Plan) -> None:
    """Fix every gate to 0 or 1 in place, as `frozen` computes it."""
    freeze_(frozen(sites, plan))


def state_dict(network: nn.Module, state: Mapping[Tensor, Tensor]) -> dict[str, Tensor]:
    """Return the state dict that a network would have if it were frozen now."""
    tensors = network.state_dict(keep_vars=True)
    return {name: state.get(tensor, tensor).detach() for name, tensor in tensors.items()}

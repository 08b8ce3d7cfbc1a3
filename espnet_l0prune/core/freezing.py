"""Freezing: what the gates and the weights of a network are once a plan is settled.

Finding that out changes nothing, so that it can be done again and again while a network
trains, for one plan or for several; putting it into a network is a step of its own::

    plan = choose(parts, {"params": 0.5})
    state = frozen(sites, plan)
    freeze_(state)                   the network itself
    state_dict(network, state)       or a copy of it, in memory or in a file
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from espnet_l0prune.core.hooks import spread
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.sites import Site

State = dict[Tensor, Tensor]  # by a network's own tensors: what they become


@torch.no_grad()
def frozen(sites: Sequence[Site], plan: Plan) -> State:
    """What becomes of the tensors of a network whose gates are fixed to 0 or 1.

    A surviving gate's soft value is folded into the weights, so that what the network
    computes changes only by the units that the plan closes; and by the gates of whole
    blocks, which have no weight to fold them into.

    Args:
        sites: those that are frozen
        plan: sites and kinds that it does not name keep all their units

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
    """Put the values into the tensors that they are for."""
    for tensor, value in state.items():
        tensor.copy_(value)


def decide_(sites: Sequence[Site], plan: Plan) -> None:
    """Fix every gate to 0 or 1 as planned, see `frozen`, in place."""
    freeze_(frozen(sites, plan))


def state_dict(network: nn.Module, state: Mapping[Tensor, Tensor]) -> dict[str, Tensor]:
    """The state dict that a network would have if it were frozen now."""
    there = network.state_dict(keep_vars=True)
    return {name: state.get(tensor, tensor).detach() for name, tensor in there.items()}

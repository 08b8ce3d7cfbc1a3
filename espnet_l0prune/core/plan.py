"""Which units of a network remain: plain data between the stages.

`Plan` lists the surviving units, `Structure` only counts them, unless their places
matter, as in the residual stream::

    {"encoders.0.self_attn": {"heads": [0, 2]}, ...}    a plan
    {"encoders.0.self_attn": {"heads": 2}, ...}         its structure
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from espnet_l0prune.core.hooks import spread
from espnet_l0prune.core.sites import Site, Units

Plan = dict[str, dict[str, list[int]]]
Structure = dict[str, dict[str, int | list[int]]]


def structure_of(sites: Sequence[Site]) -> Structure:
    """What is left of every site."""
    return {site.name: site.structure() for site in sites}


def plan_of(sites: Sequence[Site]) -> Plan:
    """List the units that survive."""
    return make_plan(sites, lambda units: units.site.survivors(units.kind))


def make_plan(sites: Sequence[Site], kept: Callable[[Units], Tensor]) -> Plan:
    """List the units that stay; those without a gate all do.

    Args:
        kept: of units with gates: which of them stay, (units,) bool
    """
    plan: Plan = {}
    for site in sites:
        plan[site.name] = {k: list(range(n)) for k, n in site.sizes.items()}
        for kind in site.gates:
            left = kept(Units(site, kind)).nonzero().flatten().tolist()
            plan[site.name][kind] = left
    return plan


@torch.no_grad()
def decide_(sites: Sequence[Site], plan: Plan) -> None:
    """Fix every gate to 0 or 1 as planned.

    A surviving gate's soft value is folded into the weights first, so that what
    the network computes changes only by the units that the plan closes; and by the
    gates of whole blocks, which have no weight to fold them into.

    Args:
        plan: names every kind of every site that has gates
    """
    for site in sites:
        values, keeps = {}, {}
        for kind, gate in site.gates.items():
            keep = torch.zeros_like(gate.log_alpha, dtype=torch.bool)
            keep[plan[site.name][kind]] = True
            values[kind] = torch.where(keep, gate.values(), 1.0)
            keeps[kind] = keep
        for claim in site.claims():
            if claim.folds and claim.kind in values:
                tensor = getattr(claim.module, claim.tensor)
                shape = [1] * tensor.dim()
                shape[claim.dim] = -1
                z = spread(values[claim.kind], claim.inner, claim.outer)
                tensor.mul_(z.view(shape).to(tensor.dtype))
        for kind, gate in site.gates.items():
            gate.decide_(keeps[kind])


def features_left(
    sites: Sequence[Site], plan: Mapping
) -> tuple[dict[str, dict[str, Tensor]], dict[tuple[nn.Module, str], dict[int, Tensor]]]:
    """What a plan leaves of each site's units, and of each tensor's features.

    Args:
        plan: as `Plan`; sites and kinds that it does not name keep all their units

    Returns:
        by site and kind, which units stay, (units,) bool; by module and tensor, and by
        dimension, which features do, (features,) bool
    """
    kept: dict[str, dict[str, Tensor]] = {}
    left: dict[tuple[nn.Module, str], dict[int, Tensor]] = {}
    for site in sites:
        masks = {}
        for kind, size in site.sizes.items():
            mask = torch.zeros(size, dtype=torch.bool)
            mask[list(plan.get(site.name, {}).get(kind, range(size)))] = True
            masks[kind] = mask
        kept[site.name] = masks
        for claim in site.claims():
            if claim.whole:
                continue
            dims = left.setdefault((claim.module, claim.tensor), {})
            mask = spread(masks[claim.kind], claim.inner, claim.outer)
            dims[claim.dim] = dims.get(claim.dim, True) & mask
    return kept, left

"""PARP on structured units: prune, adjust, prune again.

Lai et al. 2021, arXiv 2106.05933. What the gates of the weakest units would multiply is
set to zero; training goes on without a mask, so that units can come back; then units are
chosen again. Only these weights: with what a unit reads and what it gives both at zero,
neither would have a gradient.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from one_shot import gate_names, gated

from espnet_l0prune.core.cutting import features_left
from espnet_l0prune.core.files import replace, save
from espnet_l0prune.core.hooks import spread
from espnet_l0prune.core.importance import magnitude
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.selection import select
from espnet_l0prune.core.sites import Site
from espnet_l0prune.plugin.counting import make_budget, sites_of
from espnet_l0prune.plugin.options import make_goal


@torch.no_grad()
def zero_(sites: list[Site], plan: Plan) -> None:
    """Set what the gates of closed units would multiply to zero, in place."""
    kept, _ = features_left(sites, plan)
    for site in sites:
        for claim in site.claims():
            if claim.folds:
                tensor = getattr(claim.module, claim.tensor)
                keep = spread(kept[site.name][claim.kind], claim.inner, claim.outer)
                tensor.index_fill_(claim.dim, (~keep).nonzero().flatten(), 0)


def prune_softly(dense: Path, checkpoint: str, conf: Mapping, out: Path) -> None:
    """Write a dense experiment's weights with the weakest units at zero.

    Args:
        dense: its folder
        conf: of a pruning: networks, budget
        out: the checkpoint to write, of the dense network

    Raises:
        ValueError: see `gated` and `magnitude`; a budget that the units cannot reach
    """
    model, args = gated(dense, checkpoint, conf)
    budget = make_budget(model, make_goal(args))
    plan = select(budget, make_goal(args).targets, scores=magnitude(budget))
    zero_(sites_of(model), plan)
    gates = gate_names(model)
    state = {n: value for n, value in model.state_dict().items() if n not in gates}
    replace(out, lambda part: save(state, part))

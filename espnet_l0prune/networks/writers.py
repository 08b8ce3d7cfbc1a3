"""This file finds the layers that read units, and where their output goes."""

from collections.abc import Iterator, Sequence

from torch import nn

from espnet_l0prune.core.cutting import features_left
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.reconstruction import Writer
from espnet_l0prune.core.sites import Site
from espnet_l0prune.networks.blocks.s3prl import S3prlBlock
from espnet_l0prune.networks.branch import BranchSite
from espnet_l0prune.networks.branches.attention import HeadsSite
from espnet_l0prune.networks.frontend import FrontendSite

WIDTHS = ("width", "block_width")


def writers_of(model: nn.Module, sites: Sequence[Site], plan: Plan) -> list[Writer]:
    """Return the layers that reconstruction fits, in the order of computation.

    These are the layers of a front end that read its channels, and the layers of blocks
    that write to the residual stream, but for those of a self-supervised front end, which
    s3prl does not call one by one.

    Args:
        model: the uncut model
        sites: all sites of the model
        plan: what a cut of the model keeps

    Raises:
        ValueError: a plan of another network, or one that cuts the residual stream
    """
    plan.check(sites)
    for site in sites:
        for kind in WIDTHS:
            if kind in site.sizes and len(plan.units(site, kind)) < site.sizes[kind]:
                raise ValueError(
                    f"{site.name} keeps {len(plan.units(site, kind))} of "
                    f"{site.sizes[kind]} features of the residual stream, so that the "
                    "streams of both networks cannot be compared; expected all of them. "
                    f"Reconstruct networks whose units are others than {kind}."
                )
    names = {module: name for name, module in model.named_modules()}
    _, left = features_left(sites, plan)
    writers = {}
    for site in sites:
        for layer, reader, factor in _places(site):
            writers[layer] = Writer(
                layer=names[layer],
                branch=names[site.module],
                reader=None if reader is None else names[reader],
                factor=factor,
                kept=left[layer, "weight"].get(0) if reader is None else None,
            )
    return list(writers.values())


def _places(site: Site) -> Iterator[tuple[nn.Module, nn.Module | None, float]]:
    """Yield a layer, the module that reads the stream before it, and the factor."""
    if isinstance(site, FrontendSite):
        yield site.consumer, None, 1.0
    elif isinstance(site, BranchSite) and not isinstance(site.block, S3prlBlock):
        block, name = site.block, site.attribute
        layer = block.merge if block.is_merged(name) else site.consumer
        before = getattr(block.module, "normalize_before", True)
        first = site.norm if before else site.module
        # otherwise another layer joins what the attention returns to the stream
        if not (block.reads_beside_attention and isinstance(site, HeadsSite)):
            yield layer, first, block.factor(name)

"""This file finds all sites of one of ESPnet's networks."""

from collections.abc import Iterator

from torch import nn

from espnet_l0prune.core.replacements import Constant
from espnet_l0prune.core.sites import Site
from espnet_l0prune.networks.block import Block, Place, Skip
from espnet_l0prune.networks.blocks import block_of
from espnet_l0prune.networks.branch import BranchSite, ConstantSite
from espnet_l0prune.networks.depth import BlockSite
from espnet_l0prune.networks.espnet_modules import TransducerEncoder
from espnet_l0prune.networks.espnet_ssl import find_ssl_sites, ssl_encoder
from espnet_l0prune.networks.frontend import FrontendSite
from espnet_l0prune.networks.s3prl import S3prlConvolutionSite, s3prl_blocks
from espnet_l0prune.networks.stream import BlockWidthSite, Branch, StreamSite
from espnet_l0prune.networks.whisper import find_whisper_sites, whisper_blocks


def blocks_of(
    network: nn.Module | None,
) -> Iterator[tuple[str, nn.Sequential | nn.ModuleList]]:
    """Yield a network's blocks with their name in it, if it has some.

    Args:
        network: ESPnet's encoder, decoder or front end
    """
    for name in ("encoders", "decoders"):
        if name == "encoders":  # of an encoder for several speakers, each has its own
            for i, blocks in enumerate(getattr(network, "encoders_sd", ())):
                yield f"encoders_sd.{i}", blocks
        if isinstance(getattr(network, name, None), nn.Sequential):
            yield name, getattr(network, name)
    if isinstance(network, TransducerEncoder):
        yield "encoders.blocks", network.encoders.blocks
    yield from whisper_blocks(network)
    yield from s3prl_blocks(network)
    if (heard := ssl_encoder(network)) is not None:
        path, encoder = heard
        for name, blocks in blocks_of(encoder):
            yield f"{path}.{name}", blocks


def layers_of(network: nn.Module | None) -> list[nn.Module]:
    """Return a network's blocks, in the order of computation; none for None."""
    return [layer for _, blocks in blocks_of(network) for layer in blocks]


def branch_type(place: Place, module: nn.Module) -> type[BranchSite] | None:
    """Return the kind of branch that a module is at its place; None if it is unknown."""
    for site in place.sites:
        if isinstance(module, site.module_types):
            return site
    return None


def find_sites(network: nn.Module | None) -> list[Site]:
    """Return all sites of a network, in the order of computation.

    Args:
        network: ESPnet's front end, encoder or decoder; None for one that is not there
    """
    if network is None:
        return []
    sites: list[Site] = [
        *FrontendSite.find(network),
        *find_whisper_sites(network),
        *S3prlConvolutionSite.find(network),
        *find_ssl_sites(network),
    ]
    by_block: list[tuple[str, Block, list[Branch]]] = []
    for name, blocks in blocks_of(network):
        for i, layer in enumerate(blocks):
            path, block, branches = f"{name}.{i}", block_of(layer), list[Branch]()
            for attribute, place in block.branches.items():
                module = getattr(layer, attribute)
                where = f"{path}.{attribute}", block, attribute
                if isinstance(module, Constant):
                    branches.append(ConstantSite(*where))
                elif (branch := branch_type(place, module)) is not None:
                    branches.append(branch(*where))
            by_block.append((path, block, branches))
            sites += [*branches, BlockSite(path, blocks, i)]
    if hasattr(network, "encoders") and hasattr(network, "after_norm"):
        known = [entry for entry in by_block if not isinstance(entry[1].module, Skip)]
        sites.append(StreamSite(network, [(b, branches) for _, b, branches in known]))
        for path, block, branches in known:
            sites.append(BlockWidthSite(f"{path}.stream", network, block, branches))
    return sites

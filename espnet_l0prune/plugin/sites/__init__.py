"""Sites in ESPnet's encoders and decoders: one file for each kind of layer.

A new kind of branch is a class in a file of its own, named in `BRANCHES`.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from espnet_l0prune.core.replacements import Constant, Skip
from espnet_l0prune.core.sites import Site
from espnet_l0prune.plugin.sites.attention import AttentionSite, SourceAttentionSite
from espnet_l0prune.plugin.sites.block import BlockSite
from espnet_l0prune.plugin.sites.branch import BranchSite, ConstantSite, layout_of
from espnet_l0prune.plugin.sites.cgmlp import ConvolutionalGatingSite
from espnet_l0prune.plugin.sites.convolution import ConvolutionSite
from espnet_l0prune.plugin.sites.feed_forward import FeedForwardSite
from espnet_l0prune.plugin.sites.frontend import FrontendSite
from espnet_l0prune.plugin.sites.stream import BlockWidthSite, Branch, StreamSite

BRANCHES: tuple[type[BranchSite], ...] = (
    AttentionSite,
    SourceAttentionSite,
    FeedForwardSite,
    ConvolutionSite,
    ConvolutionalGatingSite,
)
OTHERS: tuple[type[Site], ...] = (FrontendSite, BlockSite, StreamSite, BlockWidthSite)
UNITS = tuple(kind for site in (*BRANCHES, *OTHERS) for kind in site.kinds)
WORDS = {
    "default": (
        "heads",
        "src_heads",
        "ffn_channels",
        "conv_modules",
        "conv_channels",
        "cgmlp_channels",
        "frontend_channels",
    ),
    "paper": ("heads", "ffn_channels", "conv_modules", "width", "block_width"),
    "all": UNITS,
}


def _blocks(network: nn.Module) -> Iterator[tuple[str, nn.Sequential]]:
    for name in ("encoders", "decoders"):
        if isinstance(getattr(network, name, None), nn.Sequential):
            yield name, getattr(network, name)


def _branch_type(attribute: str) -> type[BranchSite]:
    return next(branch for branch in BRANCHES if attribute in branch.attributes)


def find_sites(network: nn.Module) -> list[Site]:
    """All sites of an ESPnet encoder or decoder, in the order of computation."""
    sites: list[Site] = list(FrontendSite.find(network))
    by_block: list[tuple[str, nn.Module, list[Branch]]] = []
    for name, blocks in _blocks(network):
        for i, block in enumerate(blocks):
            path, branches = f"{name}.{i}", list[Branch]()
            for attribute in layout_of(block):
                module, branch = getattr(block, attribute), _branch_type(attribute)
                where = f"{path}.{attribute}", block, attribute
                if isinstance(module, Constant):
                    branches.append(ConstantSite(*where))
                elif isinstance(module, branch.module_types):
                    branches.append(branch(*where))
            by_block.append((path, block, branches))
            sites += [*branches, BlockSite(path, blocks, i)]
    if hasattr(network, "encoders") and hasattr(network, "after_norm"):
        known = [entry for entry in by_block if not isinstance(entry[1], Skip)]
        sites.append(StreamSite(network, [(b, found) for _, b, found in known]))
        for path, block, found in known:
            sites.append(BlockWidthSite(f"{path}.stream", network, block, found))
    return sites


def choose_units(network: nn.Module, units: str | Iterable[str], where: str) -> list[str]:
    """The kinds of units that a user asked for, by a word or by a list.

    A word stands for those of its kinds that the network has and that can be pruned
    there; what it leaves out for a reason, it logs.

    Args:
        network: ESPnet's encoder or decoder
        units: a word of `WORDS`, or kinds
        where: the option's place, for messages

    Raises:
        ValueError: an unknown kind; one that the network does not have, or that cannot
            be pruned there, with the reason and with what can
    """
    sites = find_sites(network)
    here = [k for k in UNITS if any(k in site.kinds for site in sites)]
    obstacles = _obstacles(network, sites)
    able = [kind for kind in here if kind not in obstacles]
    if isinstance(units, str):
        if units not in WORDS:
            raise ValueError(
                f"{where}: units is {units!r}; expected {', '.join(WORDS)}, or a list "
                f"of some of {', '.join(here)}"
            )
        for kind in WORDS[units]:
            if kind in obstacles:
                logging.warning(
                    f"{where}: units: {units} leaves out {kind}, which cannot be pruned "
                    f"at {obstacles[kind]}"
                )
        return [kind for kind in WORDS[units] if kind in able]
    kinds = list(units)
    for kind in kinds:
        if kind not in UNITS:
            raise ValueError(
                f"{where}: units has {kind!r}; expected {', '.join(WORDS)}, or a "
                f"list of some of {', '.join(here)}"
            )
        if kind in obstacles:
            raise ValueError(
                f"{where}: units has {kind!r}, which cannot be pruned at "
                f"{obstacles[kind]}. Choose among {', '.join(able)}."
            )
        if kind not in here:
            raise ValueError(
                f"{where}: units has {kind!r}, but nothing in this network has such "
                f"units; it has {', '.join(here)}"
            )
    return kinds


def _obstacles(network: nn.Module, sites: Sequence[Site]) -> dict[str, str]:
    """To each kind that cannot be pruned in a network, the first place and the reason."""
    found: dict[str, str] = {}
    for path, reason, kinds in (
        *_foreign(network),
        *_shared(network, sites),
        *((s.name, s.why_not(kind), [kind]) for s in sites for kind in s.kinds),
    ):
        if reason:
            for kind in kinds:
                found.setdefault(kind, f"{path}: {reason}")
    return found


def _foreign(network: nn.Module) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Branches that have no site: path, reason, and the kinds that they would have."""
    for name, blocks in _blocks(network):
        for i, block in enumerate(blocks):
            for attribute in layout_of(block):
                module, branch = getattr(block, attribute), _branch_type(attribute)
                if not isinstance(module, (*branch.module_types, Constant)):
                    types = ", ".join(t.__name__ for t in branch.module_types)
                    reason = (
                        f"it is a {type(module).__name__}; only {types} can be cut there"
                    )
                    yield f"{name}.{i}.{attribute}", reason, branch.kinds


def _shared(
    network: nn.Module, sites: Sequence[Site]
) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Sites of which a cut would slice a tensor that is used in two places."""
    paths: dict[int, str] = {}
    shared: dict[int, str] = {}
    for path, parameter in network.named_parameters(remove_duplicate=False):
        if id(parameter) in paths:
            shared[id(parameter)] = f"{paths[id(parameter)]} and {path}"
        paths[id(parameter)] = path
    for site in sites:
        for claim in site.claims():
            tensor = getattr(claim.module, claim.tensor)
            if id(tensor) in shared:
                reason = f"{shared[id(tensor)]} are the same tensor"
                yield site.name, reason, [claim.kind]

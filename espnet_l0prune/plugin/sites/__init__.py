"""Sites in ESPnet's encoders and decoders: one file for each kind of layer.

A new kind of branch is a class in a file of its own, named in `BRANCHES`.
"""

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

    A word stands for those of its kinds that the network has.

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
    if isinstance(units, str):
        if units not in WORDS:
            raise ValueError(
                f"{where}: units is {units!r}; expected {', '.join(WORDS)}, or a list "
                f"of some of {', '.join(here)}"
            )
        kinds = [kind for kind in WORDS[units] if kind in here]
        _refuse_foreign(network, WORDS[units], here, where)
    else:
        kinds = list(units)
        for kind in kinds:
            if kind not in UNITS:
                raise ValueError(
                    f"{where}: units has {kind!r}; expected {', '.join(WORDS)}, or a "
                    f"list of some of {', '.join(here)}"
                )
        _refuse_foreign(network, kinds, here, where)
        for kind in kinds:
            if kind not in here:
                raise ValueError(
                    f"{where}: units has {kind!r}, but nothing in this network has such "
                    f"units; it has {', '.join(here)}"
                )
    _refuse_shared(network, sites, kinds, where)
    for kind in kinds:
        for site in sites:
            if kind in site.kinds and (reason := site.why_not(kind)):
                able = [
                    k
                    for k in here
                    if not any(s.why_not(k) for s in sites if k in s.kinds)
                ]
                raise ValueError(
                    f"{where}: units has {kind!r}, which cannot be pruned at "
                    f"{site.name}: {reason}. Choose among {', '.join(able)}."
                )
    return kinds


def _refuse_foreign(
    network: nn.Module, kinds: Sequence[str], here: Sequence[str], where: str
) -> None:
    """Raise ValueError for a branch that should be pruned but has no site."""
    for name, blocks in _blocks(network):
        for i, block in enumerate(blocks):
            for attribute in layout_of(block):
                module, branch = getattr(block, attribute), _branch_type(attribute)
                if isinstance(module, (*branch.module_types, Constant)):
                    continue
                wanted = [kind for kind in kinds if kind in branch.kinds]
                if wanted:
                    types = ", ".join(t.__name__ for t in branch.module_types)
                    raise ValueError(
                        f"{where}: units has {', '.join(wanted)}, but {name}.{i}."
                        f"{attribute} is a {type(module).__name__}; only {types} can be "
                        f"cut there. Choose among "
                        f"{', '.join(k for k in here if k not in branch.kinds)}."
                    )


def _refuse_shared(
    network: nn.Module, sites: Sequence[Site], kinds: Sequence[str], where: str
) -> None:
    """Raise ValueError where a tensor to be cut is used in two places."""
    paths: dict[int, str] = {}
    shared: dict[int, tuple[str, str]] = {}
    for path, parameter in network.named_parameters(remove_duplicate=False):
        if id(parameter) in paths:
            shared[id(parameter)] = paths[id(parameter)], path
        paths[id(parameter)] = path
    for site in sites:
        for claim in site.claims():
            tensor = getattr(claim.module, claim.tensor)
            if claim.kind in kinds and id(tensor) in shared:
                one, two = shared[id(tensor)]
                raise ValueError(
                    f"{where}: units has {claim.kind!r}, but {one} and {two} are the "
                    "same tensor; expected modules that are not shared"
                )

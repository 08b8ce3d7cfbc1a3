"""This file lists the kinds of units, and chooses those that a user asks for."""

import logging
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from espnet_l0prune.core.replacements import Constant
from espnet_l0prune.core.sites import Site
from espnet_l0prune.networks.blocks import block_of
from espnet_l0prune.networks.branches import BRANCHES
from espnet_l0prune.networks.depth import BlockSite
from espnet_l0prune.networks.frontend import FrontendSite
from espnet_l0prune.networks.sites import blocks_of, branch_type, find_sites
from espnet_l0prune.networks.stream import BlockWidthSite, StreamSite

OTHERS: tuple[type[Site], ...] = (FrontendSite, BlockSite, StreamSite, BlockWidthSite)
SITES = *BRANCHES, *OTHERS
UNITS = tuple(dict.fromkeys(kind for site in SITES for kind in site.kinds))
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


def choose_units(network: nn.Module, units: str | Iterable[str], where: str) -> list[str]:
    """Return the kinds of units that a user asked for, by a word or by a list.

    A word stands for those of its kinds that the network has and that can be pruned
    there; kinds that it leaves out for another reason are logged.

    Args:
        network: ESPnet's encoder or decoder
        units: a word of `WORDS`, or kinds
        where: the part of the configuration that has the option, for messages

    Raises:
        ValueError: an unknown kind, or one that the network does not have or that cannot
            be pruned there; the message has the reason and the kinds that can be pruned
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
    """Return the first place and the reason for each kind that cannot be pruned here."""
    reasons: dict[str, str] = {}
    for path, reason, kinds in (
        *_foreign(network),
        *_shared(network, sites),
        *((s.name, s.why_not(kind), [kind]) for s in sites for kind in s.kinds),
    ):
        if reason:
            for kind in kinds:
                reasons.setdefault(kind, f"{path}: {reason}")
    return reasons


def _foreign(network: nn.Module) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield branches without a site: path, reason, and the kinds that they might have."""
    for name, blocks in blocks_of(network):
        for i, layer in enumerate(blocks):
            for attribute, place in block_of(layer).branches.items():
                module = getattr(layer, attribute)
                if isinstance(module, Constant) or branch_type(place, module):
                    continue
                types = [t.__name__ for site in place.sites for t in site.module_types]
                reason = (
                    f"it is a {type(module).__name__}; only {', '.join(types)} can be "
                    "cut there"
                )
                kinds = [kind for site in place.sites for kind in site.kinds]
                yield f"{name}.{i}.{attribute}", reason, kinds


def _shared(
    network: nn.Module, sites: Sequence[Site]
) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield sites whose cut would slice a tensor that is used in two places."""
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

"""What a network costs, term by term.

Every tensor of a network is a term: an amount of each cost with all units open, times
one factor for each group of units that it shrinks with. With p_u the probability that
unit u of n is open, the factors are::

    mean   (1/n) sum_u p_u: a dimension of the tensor belongs to the units
    both   (1/n) sum_u p_u q_u: to the units that two gates leave open
    pair   ((sum_u p_u)^2 - sum_u p_u^2 + sum_u p_u) / n^2: two of its dimensions do,
           since a gate that meets itself gives p, not p^2
    any    1 - prod_u (1 - p_u): the tensor stays as long as some unit does

As an example, take a feed-forward module of 3 features and 4 channels, and let gates
leave its channels open with p = (1, 1, 0.5, 0). The weights of both layers, 4 x 3 and
3 x 4, and the first bias, 4, have the factor mean = 2.5 / 4; the second bias, 3, belongs
to no channel and has none. So (12 + 12 + 4) 0.625 + 3 = 20.5 of 31 parameters are
expected to stay. Had the residual stream gates of its own, q, a square matrix of the
stream would have the factor pair of q; and the norm in front of the module, which goes
once the last channel has gone, has any of p = 1.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from espnet_l0prune.core.claims import Claim
from espnet_l0prune.core.costs import COSTS, Piece
from espnet_l0prune.core.gates import LogAlpha
from espnet_l0prune.core.hooks import feature_dim
from espnet_l0prune.core.sites import Shapes, Site, Units


class Factor(NamedTuple):
    """What a term shrinks with.

    Attributes:
        how: `mean`, `both`, `pair` or `any`: see the head of this file
        units: of which site and kind; two of them with `both`
    """

    how: str
    units: tuple[Units, ...]


@dataclass(frozen=True)
class Term:
    """Amounts with all units open, and what they shrink with.

    Attributes:
        owner: path of the module in the network
        amounts: of each cost, by its name in `COSTS`
        factors: their product is the share that stays
    """

    owner: str
    amounts: Mapping[str, float]
    factors: tuple[Factor, ...]


def count_parameters(*modules: nn.Module | None) -> int:
    """Parameters of the modules, gates aside."""
    return sum(
        p.numel()
        for module in modules
        if module is not None
        for p in module.parameters()
        if not isinstance(p, LogAlpha)
    )


def terms_of(network: nn.Module, sites: Sequence[Site], shapes: Shapes) -> list[Term]:
    """One term for each parameter of a network, and for what the sites add.

    Args:
        network: all that is counted
        sites: those whose gates count; the others' units are taken as open
        shapes: of the calls of one forward; none, and there are no MACs
    """
    claims: dict[tuple[nn.Module, str], list[tuple[Units, Claim]]] = {}
    dependents: dict[nn.Module, dict[Factor, None]] = {}
    paths = {module: path for path, module in network.named_modules()}
    extra = []
    for site in sites:
        gated = site.gates
        for claim in site.claims():
            if claim.kind in gated:
                where = claim.module, claim.tensor
                claims.setdefault(where, []).append((Units(site, claim.kind), claim))
        for root, kinds in site.dependents():
            for module in root.modules():
                for kind in kinds:
                    if kind in gated:
                        factor = Factor("any", (Units(site, kind),))
                        dependents.setdefault(module, {})[factor] = None
        for macs, kinds in site.macs(shapes):
            units = [Units(site, kind) for kind in kinds if kind in gated]
            extra.append((site.module, macs, units))
    terms = []
    for module, path in paths.items():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, LogAlpha):
                continue
            numel, positions = parameter.numel(), 0
            if name == "weight" and isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                dim, calls = feature_dim(module), shapes.get(module, ())
                positions = sum(math.prod(c.output) // c.output[dim] for c in calls)
            factors = _factors(claims.get((module, name), ()), dependents.get(module, ()))
            terms.append(_term(path, Piece(numel, numel * positions), factors))
    for module, macs, units in extra:
        means = {Factor("mean", (each,)): None for each in units}
        lost = [f for f in dependents.get(module, ()) if f.units[0] not in units]
        terms.append(_term(paths[module], Piece(0, macs), (*means, *lost)))
    return terms


def _term(owner: str, piece: Piece, factors: tuple[Factor, ...]) -> Term:
    return Term(owner, {k: cost.amount(piece) for k, cost in COSTS.items()}, factors)


def _factors(
    claims: Iterable[tuple[Units, Claim]], dependents: Iterable[Factor]
) -> tuple[Factor, ...]:
    """How a tensor shrinks: what claims its dimensions, and what it depends on."""
    by_layout: dict[tuple, list[Units]] = {}
    for units, claim in claims:
        by_layout.setdefault((claim.dim, claim.inner, claim.outer), []).append(units)
    factors: dict[Factor, None] = {}
    for owners in by_layout.values():
        factor = Factor("mean" if len(owners) == 1 else "both", tuple(owners))
        if factor in factors:  # the same units in another dimension
            del factors[factor]
            factor = Factor("pair", tuple(owners))
        factors[factor] = None
    claimed = {units for factor in factors for units in factor.units}
    for factor in dependents:  # no units left: nothing left, so a mean says it already
        if factor.units[0] not in claimed:
            factors[factor] = None
    return tuple(factors)

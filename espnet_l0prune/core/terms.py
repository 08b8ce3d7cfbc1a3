"""The cost of a network is a sum of terms, one for each of its tensors.

Every tensor of a network is a term: an amount of each cost with all units open, times
one factor for each group of units that it shrinks with. With p_u the probability that
unit u of n is open, the factors are::

    mean   (1/n) sum_u p_u, where one dimension of the tensor belongs to the units
    both   (1/n) sum_u p_u q_u, where each unit needs two gates to be open
    pair   ((sum_u p_u)^2 - sum_u p_u^2 + sum_u p_u) / n^2, where two dimensions belong
           to the same units: a gate that meets itself gives p, not p^2
    any    1 - prod_u (1 - p_u), where the tensor stays as long as some unit does

As an example, take 3 channels that are open with p = (1, 0.5, 0.5). Of a tensor with one
row for each channel, mean = 2 / 3 is expected to stay. A 3 x 3 matrix from these
channels to themselves keeps its entry (i, j) if gates i and j are both open: with
probability p_i p_j off the diagonal, but with p_i on it, where both are the same gate::

    1     0.5   0.5
    0.5   0.5   0.25
    0.5   0.25  0.5

These sum to 4.5, so pair = 4.5 / 9 = 0.5, as (2^2 - 1.5 + 2) / 9 says; (2 / 3)^2 would
be too little. If each channel also needs a second gate, open with q = (1, 1, 0.5), then
both = (1 + 0.5 + 0.25) / 3. Take, last, an attention of 2 heads with p = (0.5, 0.5): half
of its weights are expected to stay, but the norm in front of it only goes once both
heads have gone, so any = 1 - 0.5 0.5 = 0.75.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from espnet_l0prune.core.claims import Claim
from espnet_l0prune.core.costs import Piece, counted
from espnet_l0prune.core.gates import LogAlpha
from espnet_l0prune.core.hooks import feature_dim
from espnet_l0prune.core.sites import Call, Shapes, Site, Units


class Factor(NamedTuple):
    """A `Factor` says how a term shrinks as units close.

    Attributes:
        how: one of `mean`, `both`, `pair` and `any`, which the head of this file defines
        units: the units that close; two entries where `how` is `both`, otherwise one
    """

    how: str
    units: tuple[Units, ...]


@dataclass(frozen=True)
class Term:
    """A `Term` is what one tensor or computation costs, and how that shrinks.

    Attributes:
        owner: path of the module in the network
        amounts: what it costs with all units open, by the cost's name in `COSTS`
        factors: the product of their values is the expected share that stays
    """

    owner: str
    amounts: Mapping[str, float]
    factors: tuple[Factor, ...]


def count_parameters(*modules: nn.Module | None) -> int:
    """Count the parameters of some modules, without those of gates."""
    return sum(
        p.numel()
        for module in modules
        if module is not None
        for p in module.parameters()
        if not isinstance(p, LogAlpha)
    )


def terms_of(network: nn.Module, sites: Sequence[Site], shapes: Shapes) -> list[Term]:
    """Return a term for each parameter of a network, and for each site's computations.

    Args:
        network: the module whose tensors are counted
        sites: the sites whose gates count; the units of all other sites are taken as open
        shapes: the shapes of all calls in one forward; without any, the MACs are 0
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
        products = {}
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            positions = sum(_positions(c, module) for c in shapes.get(module, ()))
            products["weight"] = module.weight.numel() * positions
        for name, parameter in module.named_parameters(recurse=False):
            if not isinstance(parameter, LogAlpha):
                piece = Piece(parameter.numel(), products.pop(name, 0))
                by_units = claims.get((module, name), ()), dependents.get(module, ())
                terms.append(_term(path, piece, _factors(*by_units)))
        for macs in products.values():  # of a weight that is made of other parameters
            terms.append(_term(path, Piece(0, macs), ()))
    for module, macs, units in extra:
        means = {Factor("mean", (each,)): None for each in units}
        lost = [f for f in dependents.get(module, ()) if f.units[0] not in units]
        terms.append(_term(paths[module], Piece(0, macs), (*means, *lost)))
    return terms


def _positions(call: Call, layer: nn.Module) -> int:
    """Return how often a layer was applied in a call; it may have no outputs left."""
    sizes = [*call.output]
    del sizes[feature_dim(layer)]
    return math.prod(sizes)


def _term(owner: str, piece: Piece, factors: tuple[Factor, ...]) -> Term:
    return Term(owner, {k: amount(piece) for k, amount in counted().items()}, factors)


def _factors(
    claims: Iterable[tuple[Units, Claim]], dependents: Iterable[Factor]
) -> tuple[Factor, ...]:
    """Return how a tensor shrinks, by the claims on it and by what it depends on."""
    by_layout: dict[tuple, list[Units]] = {}
    for units, claim in claims:
        by_layout.setdefault((claim.dim, claim.inner, claim.outer), []).append(units)
    factors: dict[Factor, None] = {}
    for owners in by_layout.values():
        factor = Factor("mean" if len(owners) == 1 else "both", tuple(owners))
        if factor in factors:  # these units own another dimension too
            del factors[factor]
            factor = Factor("pair", tuple(owners))
        factors[factor] = None
    claimed = {units for factor in factors for units in factor.units}
    for factor in dependents:  # a mean or a pair is 0 already once no unit is left
        if factor.units[0] not in claimed:
            factors[factor] = None
    return tuple(factors)

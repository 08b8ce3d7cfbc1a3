"""A plan says which units of a network stay, as plain data between the stages.

A `Plan` lists these units. A `Structure` only counts them, unless their places matter,
as in the residual stream::

    {"encoders.0.self_attn": {"heads": [0, 2]}, ...}    a plan
    {"encoders.0.self_attn": {"heads": 2}, ...}         its structure
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeGuard

from torch import Tensor

from espnet_l0prune.core.sites import Site, Units

Structure = dict[str, dict[str, int | list[int]]]


class Plan(Mapping[str, Mapping[str, list[int]]]):
    """A `Plan` lists the units that stay, by site and kind; it never changes.

    Args:
        kept: the units that stay, in order, by the site's name and the kind; where a
            site or a kind is not named, all its units stay

    Raises:
        ValueError: something other than such a mapping
    """

    def __init__(self, kept: object):
        self._kept: dict[str, dict[str, list[int]]] = {}
        for site, kinds in _named(kept, "a plan"):
            self._kept[site] = {}
            for kind, units in _named(kinds, f"a plan for {site}"):
                if not _are_units(units):
                    raise ValueError(
                        f"a plan keeps {reprlib.repr(units)} of the {kind} of {site}; "
                        "expected the numbers of units, each once and in order"
                    )
                self._kept[site][kind] = [*units]

    def __getitem__(self, site: str) -> Mapping[str, list[int]]:
        return MappingProxyType(self._kept[site])

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def units(self, site: Site, kind: str) -> list[int]:
        """Return which units of a kind stay at a site."""
        return self._kept.get(site.name, {}).get(kind, [*range(site.sizes[kind])])

    def __or__(self, other: "Plan") -> "Plan":
        """Join two plans; where both name a site, the second one holds."""
        return Plan({**self._kept, **other._kept})

    def plain(self) -> dict[str, dict[str, list[int]]]:
        """Return the plan as dicts and lists, which `Plan` takes and a file can hold."""
        return {site: {**kinds} for site, kinds in self._kept.items()}

    def check(self, sites: Sequence[Site]) -> None:
        """Raise ValueError for units that a network does not have, or cannot be without.

        Args:
            sites: all sites of the network, before it is cut
        """
        by_name = {site.name: site for site in sites}
        for name, kinds in self._kept.items():
            if name not in by_name:
                raise ValueError(
                    f"it names {name!r}, which this network does not have; expected some "
                    f"of: {', '.join(by_name)}"
                )
            sizes = by_name[name].sizes
            for kind, units in kinds.items():
                too_few = not units and kind in by_name[name].never_empty
                if too_few or not {*units} <= {*range(sizes.get(kind, 0))}:
                    last = f" up to number {units[-1]}" if units else ""
                    raise ValueError(
                        f"it keeps {len(units)} {kind} of {name!r}{last}, where the "
                        f"uncut module has {sizes}; expected some of these"
                    )


def _named(mapping: object, what: str) -> Iterator[tuple[str, object]]:
    if not isinstance(mapping, Mapping) or any(type(name) is not str for name in mapping):
        raise ValueError(
            f"{what} is {reprlib.repr(mapping)}; expected a mapping from names to what "
            "stays of each"
        )
    yield from mapping.items()


def _are_units(units: object) -> TypeGuard[list[int]]:
    if not isinstance(units, list) or any(type(unit) is not int for unit in units):
        return False
    return units == sorted({*units}) and min(units, default=0) >= 0


def structure_of(sites: Sequence[Site]) -> Structure:
    """Return what is left of every site."""
    return {site.name: site.structure() for site in sites}


def plan_of(sites: Sequence[Site]) -> Plan:
    """Return the plan that keeps the units whose gates are open or that are protected."""
    return make_plan(sites, lambda units: units.site.survivors(units.kind))


def make_plan(sites: Sequence[Site], kept: Callable[[Units], Tensor]) -> Plan:
    """Return a plan of all sites; units without a gate all stay.

    Args:
        sites: all sites of the network
        kept: returns which of the units with a gate stay, (units,) bool
    """
    plan: dict[str, dict[str, list[int]]] = {}
    for site in sites:
        plan[site.name] = {k: list(range(n)) for k, n in site.sizes.items()}
        for kind in site.gates:
            left = kept(Units(site, kind)).nonzero().flatten().tolist()
            plan[site.name][kind] = left
    return Plan(plan)

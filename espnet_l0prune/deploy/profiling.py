"""Here it is measured how long each place of an encoder computes, with fewer units.

Encoders are timed as a whole, on any runtime, and differ in one kind of place at a time:
two blocks with all units, with one kind of branch emptied or partly cut in both, and no
block at all. Differences of their times are those of the places. Blocks with the same
branches share them. At last they are stretched by one factor, with which the sum over all
places is the time of the whole dense encoder, but for noise.
"""

import copy
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.measuring import machine_of
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.profile import Place, Profile, rising
from espnet_l0prune.core.sites import Site
from espnet_l0prune.core.steps import Step
from espnet_l0prune.deploy.timer import Conditions, time_encoders
from espnet_l0prune.networks.branch import BranchSite
from espnet_l0prune.networks.depth import BlockSite
from espnet_l0prune.networks.frontend import FrontendSite
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.plugin.counting import encoder_name, make_budget
from espnet_l0prune.plugin.heads import output_size_of

MEASURED = 2  # blocks
SHARES = (
    0.125,
    0.25,
    0.5,
    0.75,
)  # of a branch's units, or a convolution's; beside none, one and all
Kept = dict[str, dict[str, list[int]]]
Group = tuple[type, tuple[tuple[str, int], ...]]  # of branches that are alike


def counts_of(size: int, least: int) -> tuple[int, ...]:
    """Return the numbers of units to measure, rising.

    Args:
        size: the number of all of them
        least: the fewest that a cut can leave
    """
    # odd numbers, as most gates leave: multiples of 8 run a little faster
    some = (max(round(share * size) - (size > 16), 1) for share in SHARES)
    return tuple(sorted({least, 1, *some, size}))


@dataclass
class BlockKind:
    """A `BlockKind` is what some blocks of an encoder have in common: their branches.

    Attributes:
        blocks: the blocks
        groups: the branches of each block, in its order, those that are alike together
    """

    blocks: list[BlockSite]
    groups: list[dict[Group, list[BranchSite]]]

    def axes(self) -> Iterator[tuple[Group, str, tuple[int, ...]]]:
        """Yield each group of branches, their units, and how many of them to measure."""
        for group, branches in self.groups[0].items():
            kind = _units_of(branches[0])
            yield group, kind, counts_of(branches[0].sizes[kind], least=0)


class Variants:
    """The `Variants` of an encoder are what is timed, as plans by name.

    Args:
        encoder: ESPnet's encoder, without gates

    Raises:
        ValueError: an encoder of which nothing can be pruned, or whose blocks must stay
    """

    def __init__(self, encoder: nn.Module):
        sites = find_sites(encoder)
        blocks = (site for site in sites if isinstance(site, BlockSite))
        self.blocks = [site for site in blocks if site.sizes["blocks"]]
        self.front = [site for site in sites if isinstance(site, FrontendSite)]
        self._check(encoder)
        self.kinds: dict[tuple, BlockKind] = {}
        for block in self.blocks:
            groups = _groups_of(block, sites)
            alike = [(group, len(members)) for group, members in groups.items()]
            # for several speakers, the blocks that they share run once for each
            kind = self.kinds.setdefault((block.blocks, *alike), BlockKind([], []))
            kind.blocks.append(block)
            kind.groups.append(groups)
        self.thin: Kept = {site.name: {"frontend_channels": [0]} for site in self.front}
        self.none: Kept = {site.name: {"blocks": []} for site in self.blocks}

    def _check(self, encoder: nn.Module) -> None:
        what = type(encoder).__name__
        if not self.blocks:
            raise ValueError(
                f"the encoder is a {what}, none of whose blocks can be pruned; expected "
                "an encoder that `espnet-l0prune adopt` takes"
            )
        for block in self.blocks:
            if why := block.why_not("blocks"):
                raise ValueError(
                    f"the encoder, a {what}, cannot be measured with fewer blocks: {why}"
                )

    def plans(self) -> Iterator[tuple[tuple, Kept]]:
        """Yield what is timed: a key, and what its encoder keeps, if not all.

        The keys are those of the whole encoder; of two blocks of a kind, by its number;
        of the same with fewer units of a group; and of the front end alone.
        """
        yield ("dense",), {}
        for i, kind in enumerate(self.kinds.values()):
            stay = {block.name for block in kind.blocks[:MEASURED]}
            gone = {name: kept for name, kept in self.none.items() if name not in stay}
            yield ("blocks", i), self.thin | gone
            for group, units, counts in kind.axes():
                for count in counts[:-1]:
                    branches = (s for g in kind.groups[:MEASURED] for s in g[group])
                    cut = {site.name: {units: [*range(count)]} for site in branches}
                    yield (i, group, count), self.thin | gone | cut
        for numbers in self.front_numbers():
            channels = zip(self.front, numbers, strict=True)
            cut = {s.name: {"frontend_channels": [*range(n)]} for s, n in channels}
            yield ("front", numbers), self.none | cut

    def models(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return what is timed, by name: copies of a model, whose encoders are cut."""
        return {self.name_of(key): _cut(model, kept) for key, kept in self.plans()}

    def name_of(self, key: tuple) -> str:
        """Return in words what is timed for a key of `plans`; no two have the same."""
        if key == ("dense",):
            return "the whole encoder"
        if key[0] == "front":
            numbers = ", ".join(map(str, key[1]))
            return (
                f"no block, with {numbers} channels in front" if numbers else "no block"
            )
        number, *fewer = key[1:] if key[0] == "blocks" else key
        kind = [*self.kinds.values()][number]
        name = f"only {', '.join(block.name for block in kind.blocks[:MEASURED])}"
        if not fewer:
            return name
        group, count = fewer
        branches = [s for groups in kind.groups[:MEASURED] for s in groups[group]]
        sites = ", ".join(site.name for site in branches)
        return f"{name}, with {count} {_units_of(branches[0])} in each of {sites}"

    def channels(self) -> list[tuple[int, ...]]:
        """Return the numbers of channels to measure of each convolution in front."""
        return [counts_of(s.sizes["frontend_channels"], least=1) for s in self.front]

    def front_numbers(self) -> list[tuple[int, ...]]:
        """Return the numbers of channels of all convolutions that are timed together.

        Two that follow each other vary together, where all others have one channel.
        """
        one, counts = (1,) * len(self.front), self.channels()
        last = len(counts) - 1
        pairs = [range(i, i + 2) for i in range(last)] or [range(len(counts))]
        found = {one: None}
        for pair in pairs:
            for numbers in itertools.product(*(counts[i] for i in pair)):
                values = dict(zip(pair, numbers, strict=True))
                found[tuple(values.get(i, 1) for i in range(len(one)))] = None
        return [*found]


def _groups_of(block: BlockSite, sites: list[Site]) -> dict[Group, list[BranchSite]]:
    """Return a block's branches, those that are alike together."""
    groups: dict[Group, list[BranchSite]] = {}
    for site in sites:
        if isinstance(site, BranchSite) and site.block.module is block.module:
            key = type(site), tuple(site.sizes.items())
            groups.setdefault(key, []).append(site)
    return groups


def _units_of(site: BranchSite) -> str:
    """Return the kind of a branch's units; its first kind is the branch as a whole."""
    return site.kinds[min(1, len(site.kinds) - 1)]


def _cut(model: nn.Module, kept: Kept) -> nn.Module:
    """Return the model with another encoder, which has only some of its units."""
    other = copy.copy(model)
    encoder = copy.deepcopy(model.encoder)
    cut_(encoder, find_sites(encoder), Plan(kept))
    other._modules = {**model._modules, "encoder": encoder.requires_grad_(False)}
    return other


@torch.no_grad()
def profile_model(
    model: nn.Module, conditions: Conditions, rate: int, step: Step
) -> Profile:
    """Measure how long each place of a model's encoder computes on this machine.

    Args:
        model: ESPnet's model, without gates
        conditions: under which it is timed
        rate: the audio's samples per second
        step: is told what is done, and how long it will take

    Raises:
        ImportError: onnxruntime is to run, and is not installed
        ValueError: see `Variants` and `time_encoders`
    """
    variants = Variants(model.encoder)
    about = about_encoder(model, conditions.seconds)
    with tempfile.TemporaryDirectory() as folder:
        times, spread = time_encoders(
            variants.models(model), conditions, rate, Path(folder), step
        )
    machine = machine_of(conditions.runtime)
    return make_profile(variants, about, conditions, machine, times, spread)


def about_encoder(model: nn.Module, seconds: float) -> dict[str, Any]:
    """Return by what an encoder is told from another one: its name, size, parameters, and
    MACs for so many seconds of audio, by their names in `Profile`."""
    totals = make_budget(model, Goal(seconds=seconds)).totals
    return {
        "encoder": encoder_name(model.encoder),
        "size": output_size_of(model.encoder),
        "parameters": round(totals["params"]),
        "macs": round(totals["macs"]),
    }


def make_profile(
    variants: Variants,
    about: Mapping[str, Any],
    conditions: Conditions,
    machine: str,
    times: Mapping[str, float],
    spread: float,
) -> Profile:
    """Return the profile that measured times make.

    Args:
        variants: what was timed
        about: see `about_encoder`
        conditions: under which it was timed
        machine: where it was timed
        times: the seconds of each variant, by its name
        spread: the largest uncertainty of them, as a share of the longest
    """
    by_key = {key: times[variants.name_of(key)] for key, _ in variants.plans()}
    fixed, places = places_of(variants, by_key)
    return Profile(
        **about,
        seconds=conditions.seconds,
        runtime=conditions.runtime,
        threads=conditions.threads,
        int8=conditions.int8,
        machine=machine,
        spread=spread,
        fixed=fixed,
        places=tuple(places),
    )


def places_of(
    variants: Variants, times: Mapping[tuple, float]
) -> tuple[float, list[Place]]:
    """Return the seconds that never go, and the table of each place.

    Args:
        variants: what was timed
        times: the seconds of each, by its key
    """
    one = (1,) * len(variants.front)
    fixed, dense = times["front", one], times["dense",]
    places = _front(variants, times)
    whole = sum(place.times[-1] for place in places)
    kinds = [*variants.kinds.values()]
    measured = [min(MEASURED, len(kind.blocks)) for kind in kinds]
    of_block = [
        max((times["blocks", i] - fixed) / n, 0.0) for i, n in enumerate(measured)
    ]
    pairs = zip(kinds, of_block, strict=True)
    blocks = sum(time * len(kind.blocks) for kind, time in pairs)
    stretch = max(dense - fixed - whole, 0.0) / max(blocks, 1e-12)
    for i, kind in enumerate(kinds):
        rest = of_block[i]
        for group, units, counts in kind.axes():
            branches = len(kind.groups[0][group])
            ends = [times[i, group, n] for n in counts[:-1]] + [times["blocks", i]]
            gone = [(t - ends[0]) / (measured[i] * branches) for t in ends]
            table = rising(gone)
            rest -= branches * table[-1]
            stretched = tuple(stretch * time for time in table)
            for block, groups in zip(kind.blocks, kind.groups, strict=True):
                for site in groups[group]:
                    what = (site.name,), (units,), (counts,)
                    places.append(Place(block.name, *what, stretched))
        for block in kind.blocks:
            places.append(Place(block.name, (), (), (), (max(rest, 0.0) * stretch,)))
    return fixed, places


def _front(variants: Variants, times: Mapping[tuple, float]) -> list[Place]:
    """Return the tables of the front end: of its only convolution, or of each two that
    follow each other."""
    sites, counts = variants.front, variants.channels()
    one, kind = (1,) * len(sites), "frontend_channels"

    def time(values: dict[int, int]) -> float:
        numbers = tuple(values.get(i, 1) for i in range(len(one)))
        return times["front", numbers]

    if len(sites) == 1:
        table = rising([time({0: n}) - time({}) for n in counts[0]])
        return [Place(None, (sites[0].name,), (kind,), (counts[0],), tuple(table))]
    places = []
    for i, (first, second) in enumerate(itertools.pairwise(sites)):
        rows: list[list[float]] = []
        for n in counts[i]:
            # what the convolution before this one takes is in the table before
            before = time({i: n}) if i else time({})
            row = rising([time({i: n, i + 1: m}) - before for m in counts[i + 1]])
            if rows:
                row = [max(pair) for pair in zip(row, rows[-1], strict=True)]
            rows.append(row)
        flat = tuple(itertools.chain.from_iterable(rows))
        both = (counts[i], counts[i + 1])
        places.append(Place(None, (first.name, second.name), (kind, kind), both, flat))
    return places

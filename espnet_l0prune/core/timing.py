"""The time of an encoder, differentiable in its gates, from a profile's tables.

A table is read at the expected number of open units, so that this is not the mean over
all draws of the gates, as it is for parameters and multiply-accumulates. With gates of 0
and 1 it is what the tables say of a network that is cut.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from espnet_l0prune.core.profile import REMEDY, Place, Profile
from espnet_l0prune.core.sites import Site, Units

AXES = 2  # of a table, at most
SHARED = {"frontend_channels"}  # two tables may have the same convolution


class Timing:
    """A `Timing` computes for how long an encoder computes.

    Args:
        profile: what a device measured
        sites: all sites of the encoder, with or without gates, or cut
        rows: the row of each gate in what `__call__` takes
        device: where that is

    Raises:
        ValueError: a profile of another encoder, or gates whose time it does not have
    """

    def __init__(
        self,
        profile: Profile,
        sites: Sequence[Site],
        rows: Mapping[Units, int],
        device: torch.device | None = None,
    ):
        by_name = {site.name: site for site in sites}
        _check(profile, by_name, rows)
        n, places = len(rows), profile.places
        # in `__call__`, numbers of units are those of all gates, then these
        fixed = torch.zeros(len(places), AXES, dtype=torch.float64)
        counted = n + torch.arange(fixed.numel()).view(fixed.shape)
        # shares are 1, then those of all gates of one unit
        wholes = torch.zeros(len(places), AXES, dtype=torch.long)
        blocks = torch.zeros(len(places), dtype=torch.long)
        there = torch.ones(len(places), dtype=torch.float64)
        longest = max((len(x) for place in places for x in place.counts), default=2)
        self._counts = torch.arange(longest, dtype=torch.float64).repeat(
            len(places), AXES, 1
        )
        self._times = torch.zeros(len(places), longest, longest, dtype=torch.float64)
        for i, place in enumerate(places):
            for j, (name, kind) in enumerate(zip(place.sites, place.kinds, strict=True)):
                known = self._counts.new_tensor(place.counts[j])
                beyond = known[-1] + 1 + torch.arange(longest - len(known))
                self._counts[i, j] = torch.cat([known, beyond])
                site = by_name.get(name)
                if site is None:
                    continue
                fixed[i, j] = site.sizes.get(kind, 0)
                for gated in site.gates:
                    if gated == kind:
                        counted[i, j] = rows[Units(site, kind)]
                    else:
                        wholes[i, j] = 1 + rows[Units(site, gated)]
            shape = [len(numbers) for numbers in place.counts]
            shape += [1] * (AXES - len(shape))
            times = self._times.new_tensor(place.times).view(shape)
            self._times[i, : shape[0], : shape[1]] = times
            if place.block is not None:
                block = by_name[place.block]
                there[i] = block.sizes["blocks"]
                if "blocks" in block.gates:
                    blocks[i] = 1 + rows[Units(block, "blocks")]
        tensors = (fixed, counted, wholes, blocks, there, self._counts, self._times)
        moved = [tensor.to(device) for tensor in tensors]
        self._fixed, self._counted, self._wholes, self._blocks = moved[:4]
        self._there, self._counts, self._times = moved[4:]
        self.never_goes = profile.fixed

    def __call__(self, opened: Tensor) -> Tensor:
        """Return seconds, a scalar.

        Args:
            opened: (gates, largest size) in float64, 0 beyond a gate's size:
                probabilities of being open, or 0 and 1
        """
        numbers = torch.cat([opened.sum(1), self._fixed.flatten()])
        one = opened.new_ones(1)
        shares = torch.cat([one, opened[:, 0]]) if len(opened) else one
        left = numbers[self._counted] * shares[self._wholes]  # (places, axes)
        steps = (left[..., None] - self._counts[..., :-1]) / self._counts.diff()
        # how far each interval lies behind; at a measured number, the slope is that of
        # what closing a unit saves, and not that of both sides
        inside = (steps > 0) & (steps <= 1)
        passed = torch.where(inside, steps, steps.detach().clamp(0, 1))
        edge = torch.ones_like(passed[..., :1]), torch.zeros_like(passed[..., :1])
        weights = torch.cat([edge[0], passed], -1) - torch.cat([passed, edge[1]], -1)
        first, second = weights.unbind(1)
        times = torch.einsum("pi,pj,pij->p", first, second, self._times)
        return self.never_goes + (times * self._there * shares[self._blocks]).sum()


def _check(
    profile: Profile, by_name: Mapping[str, Site], rows: Mapping[Units, int]
) -> None:
    """Raise ValueError for a profile of another encoder, or one that lacks gates."""
    measured: set[tuple[str | None, str | None]] = set()
    for place in profile.places:
        _check_place(place, by_name)
        pairs: set[tuple[str | None, str | None]] = {
            *zip(place.sites, place.kinds, strict=True)
        } or {(place.block, None)}
        if pairs & measured and not SHARED & {*place.kinds}:
            raise ValueError(f"the profile has one place twice: {pairs}. {REMEDY}")
        measured |= pairs
    names = {name for name, _ in measured}
    for name, site in by_name.items():
        if site.sizes.get("blocks") and (name, None) not in measured:
            raise ValueError(
                f"the profile has no times of {name}, which this encoder has: it is a "
                f"profile of another encoder. {REMEDY}"
            )
    for site, kind in rows:
        whole = site.name in names and site.kinds[:1] == (kind,)
        if kind != "blocks" and not whole and (site.name, kind) not in measured:
            known = dict.fromkeys(x for place in profile.places for x in place.kinds)
            raise ValueError(
                f"the profile has no times for fewer {kind} at {site.name}, which have "
                f"gates; it has those of {', '.join(known)}. Expected units among these, "
                "or no target in time and no profile."
            )


def _check_place(place: Place, by_name: Mapping[str, Site]) -> None:
    block = None if place.block is None else by_name.get(place.block)
    if place.block is not None and (block is None or "blocks" not in block.sizes):
        raise ValueError(
            f"the profile has a block {place.block}, which this encoder has not. {REMEDY}"
        )
    for name, kind, counts in zip(place.sites, place.kinds, place.counts, strict=True):
        site = by_name.get(name)
        if site is None and block is not None and not block.sizes["blocks"]:
            continue  # it was cut with its block
        size = None if site is None else site.sizes.get(kind)
        if size is None or size > counts[-1]:
            has = "none" if size is None else size
            raise ValueError(
                f"the profile has {counts[-1]} {kind} at {name}, this encoder {has}: it "
                f"is a profile of another encoder. {REMEDY}"
            )

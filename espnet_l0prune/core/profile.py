"""A profile is what a device measured: how long each place of an encoder computes.

A *place* is a branch of a block, what else a block computes, or convolutions of the front
end, and has a table of times by how many units are left. Between the numbers that were
measured, times are interpolated linearly along each axis. The time of an encoder is the
sum over its places, and of what never goes.
"""

import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from espnet_l0prune.core.ranges import Range, check

NOISIEST = 0.1  # the largest spread that a target in time can be held to
MOST_COUNTS, MOST_PLACES = 64, 2000  # more is no profile, and would take much memory
VERSION = 1
RUNTIMES = "torch", "onnxruntime"
TIMES = Range(0, 3600)  # seconds of a place
TYPES = {
    **{"encoder": str, "size": int, "parameters": int, "macs": int},
    **{"runtime": str, "int8": bool, "machine": str},
}
REMEDY = "Expected what `espnet-l0prune profile` wrote: measure again."


@dataclass(frozen=True)
class Place:
    """A `Place` says how long a part of an encoder computes, by the units it has left.

    Attributes:
        block: path of the block that it is part of, with which it goes; None for the
            front end
        sites: paths of the sites whose units count, one for each axis of the table, at
            most two
        kinds: the kind of unit on each axis
        counts: the numbers of units that were measured on each axis, rising; the last one
            is all of them
        times: seconds for each combination of these numbers, row by row
    """

    block: str | None
    sites: tuple[str, ...]
    kinds: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    times: tuple[float, ...]

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the table, if anything is."""
        names = *self.sites, *self.kinds, "" if self.block is None else self.block
        if not all(isinstance(name, str) for name in names):
            yield f"names {names}"
        if not len(self.sites) == len(self.kinds) == len(self.counts) <= 2:
            yield f"{len(self.sites)} sites, {len(self.kinds)} kinds, {self.counts}"
        for numbers in self.counts:
            whole = all(type(n) is int and n >= 0 for n in numbers)
            few = 1 <= len(numbers) <= MOST_COUNTS
            if not (whole and few and [*numbers] == sorted({*numbers})):
                yield f"counts of {reprlib.repr([*numbers])}"
        if len(self.times) != math.prod(map(len, self.counts)):
            yield f"{len(self.times)} times for {self.counts}"
        for time in self.times:
            if time not in TIMES:
                yield f"a time of {reprlib.repr(time)}"


@dataclass(frozen=True)
class Profile:
    """A `Profile` says how long an encoder computes on a device.

    Attributes:
        encoder: name of the encoder's class
        size: number of features of its residual stream
        parameters, macs: what the encoder has, and computes for this audio, with all
            units, by which another one is told from it
        seconds: length in seconds of the audio
        runtime: what computed: `torch` or `onnxruntime`
        threads: on so many threads
        int8: whether matrix products were quantized
        machine: what the device is
        spread: the largest uncertainty of a measured time, as a share of the whole one
        fixed: seconds that never go
        places: what can go
    """

    encoder: str
    size: int
    parameters: int
    macs: int
    seconds: float
    runtime: str
    threads: int
    int8: bool
    machine: str
    spread: float
    fixed: float
    places: tuple[Place, ...]

    @classmethod
    def from_plain(cls, data: object, where: str) -> Self:
        """Return a profile from what `plain` returned, or a file that holds it.

        Args:
            data: the plain data
            where: what holds it, for messages

        Raises:
            ValueError: something else, an impossible table or time, or more noise than a
                target can bear
        """
        if not isinstance(data, Mapping) or data.get("version") != VERSION:
            raise ValueError(f"{where} is no profile of version {VERSION}. {REMEDY}")
        try:
            values = {name: data[name] for name in cls.__dataclass_fields__}
            places = [
                Place(
                    one["block"],
                    tuple(one["sites"]),
                    tuple(one["kinds"]),
                    tuple(map(tuple, one["counts"])),
                    tuple(one["times"]),
                )
                for one in values.pop("places")
            ]
            profile = cls(**values, places=tuple(places))
            for name, kind in TYPES.items():
                if type(value := values[name]) is not kind:
                    raise TypeError(f"{name} is {reprlib.repr(value)}")
            check("command line", {"--threads": profile.threads})
            check("sparsity_goal_conf", {"seconds": profile.seconds})
            if profile.runtime not in RUNTIMES or (
                profile.int8 and profile.runtime == RUNTIMES[0]
            ):
                raise ValueError(f"{profile.runtime} with int8 {profile.int8}")
            if len(places) > MOST_PLACES:
                raise ValueError(f"it has {len(places)} places")
            numbers = profile.fixed, profile.spread
            sound = all(number in TIMES and number for number in numbers)
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(
                f"{where} is damaged ({type(e).__name__}: {e}). {REMEDY}"
            ) from e
        if not sound:
            raise ValueError(
                f"{where} has fixed {profile.fixed!r} and spread {profile.spread!r}; "
                f"expected {TIMES} above 0. {REMEDY}"
            )
        for place in profile.places:
            for problem in place.problems():
                at = " and ".join(map(str, place.sites)) or place.block
                raise ValueError(
                    f"{where} has {problem} at {at}; expected rising numbers of units, "
                    f"and a time for each. {REMEDY}"
                )
        if profile.spread > NOISIEST:
            raise ValueError(
                f"{where} has a spread of {profile.spread:.1%}; expected at most "
                f"{NOISIEST:.0%}, as no target can be kept closer than it was measured. "
                "Measure again on a device that does nothing else."
            )
        return profile

    def plain(self) -> dict[str, Any]:
        """Return plain data that a file can hold, and `from_plain` reads."""
        return {"version": VERSION, **asdict(self)}


def rising(times: Sequence[float]) -> list[float]:
    """Return times none of which is below the one before, nor below 0.

    Fewer units never compute for longer; where they seem to, it is noise.
    """
    found, least = [], 0.0
    for time in times:
        least = max(least, time)
        found.append(least)
    return found


def summary(profile: Profile) -> list[dict[str, Any]]:
    """Return a row for each kind of place, and one for what never goes: milliseconds of
    all places of the kind, their share of the whole time, and what they take with half of
    the units and with the fewest."""
    dense = profile.fixed + sum(place.times[-1] for place in profile.places)
    rows: dict[str, dict[str, Any]] = {}
    for place in profile.places:
        name = " x ".join(place.kinds) or "the rest of the blocks"
        row = rows.setdefault(name, dict.fromkeys(("ms", "half", "none"), 0.0))
        row["ms"] += 1000 * place.times[-1]
        row["none"] += 1000 * place.times[0]
        row["half"] += 1000 * _at_half(place)
    found = [{"place": name, **row} for name, row in rows.items()]
    fixed = {"place": "what never goes", "ms": 1000 * profile.fixed}
    found.append({**fixed, "half": None, "none": None})
    return [row | {"share": row["ms"] / 1000 / dense} for row in found]


def _at_half(place: Place) -> float:
    """Return the seconds of a place with about half of its units on each axis."""
    index = 0
    for numbers in place.counts:
        nearest = min(
            range(len(numbers)), key=lambda i: abs(numbers[i] - numbers[-1] / 2)
        )
        index = index * len(numbers) + nearest
    return place.times[index]

"""Candidates for pruning are closed one at a time, to see what each saves and harms.

Nothing is trained meanwhile. How harm is measured is up to the caller.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.importance import Scores, closed, weakest_first
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.sites import Units

Closing = Mapping[Units, Tensor]  # numbers of the units that close, (n,), for some gates


@dataclass(frozen=True, eq=False)
class Candidate:
    """A `Candidate` is what could go together.

    Attributes:
        place: path of the site in its network, or of the block
        kind: the kind of the units; None for all units of a block
        whole: all of them, but for the strongest one where one has to stay
        half: the weaker half of them, rounded down; None where there is none
    """

    place: str
    kind: str | None
    whole: Closing
    half: Closing | None


def candidates_of(budget: Budget) -> list[Candidate]:
    """Return the units of each gate as a candidate, and all units of each block.

    Units are weak or strong by the norm of their weights. A block that has a gate of its
    own is a candidate by that.

    Args:
        budget: counts the network
    """
    found = []
    blocks: dict[str, dict[Units, Tensor]] = {
        site.name: {} for site in budget.sites if "blocks" in site.kinds
    }
    for units, order in zip(budget.gates, weakest_first(budget), strict=True):
        site, kind = units
        gone = order[:-1] if _one_stays(units, order) else order
        if not len(gone):
            continue
        weak = order[: len(order) // 2]
        half = {units: weak} if 0 < len(weak) < len(gone) else None
        found.append(Candidate(site.name, kind, {units: gone}, half))
        part = site.part("block")
        if part is not None and part[0] in blocks:
            blocks[part[0]][units] = gone
    for name, whole in blocks.items():
        if len(whole) > 1 and all(units.kind != "blocks" for units in whole):
            found.append(Candidate(name, None, whole, None))
    return found


def _one_stays(units: Units, order: Tensor) -> bool:
    """Return whether not all units may go, which are in an order of rising strength."""
    strength = order.argsort().double()
    return units.site.protected(units.kind, lambda gate: strength) is not None


@contextmanager
def closing(units: Closing) -> Iterator[None]:
    """Close some units within a `with` block."""
    with ExitStack() as stack:
        for (site, kind), numbers in units.items():
            stack.enter_context(closed(site.gates[kind], numbers))
        yield


def left_out(budget: Budget, plan: Plan) -> Closing:
    """Return the units that have a gate, and that a plan does not keep."""
    gone = {}
    for units, gate in budget.gates.items():
        mask = torch.ones_like(gate.log_alpha, dtype=torch.bool)
        mask[plan.units(*units)] = False
        gone[units] = mask.nonzero().flatten()
    return gone


def scores_of(
    budget: Budget,
    candidates: Sequence[Candidate],
    harms: Sequence[tuple[float | None, float]],
) -> Scores:
    """Score each unit by its share of the harm that closing its candidate does.

    The weaker half of a gate's units share the harm of that half, and the other half what
    is more when all close. If that would be less for each, all share alike, since the
    stronger ones do not go without the weaker ones. A unit that has to stay has an
    infinite score.

    Args:
        budget: counts the network
        candidates: some of it; those of all units of a block are passed over
        harms: of the half, or None where there is none, and of the whole, for each
            candidate
    """
    scores = {
        units: torch.full_like(gate.log_alpha.detach(), torch.inf)
        for units, gate in budget.gates.items()
    }
    for candidate, (half, whole) in zip(candidates, harms, strict=True):
        if candidate.kind is None:
            continue
        ((units, gone),) = candidate.whole.items()
        scores[units][gone] = whole / len(gone)
        if candidate.half is not None and half is not None:
            n = len(candidate.half[units])
            weak, strong = half / n, (whole - half) / (len(gone) - n)
            if weak < strong:
                scores[units][gone[:n]], scores[units][gone[n:]] = weak, strong
    return list(scores.values())

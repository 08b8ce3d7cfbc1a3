"""Units close in the order of their probability, in groups that go together."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from espnet_l0prune.core.gates import HardConcrete, ScoreOf, log_alpha_of
from espnet_l0prune.core.sites import Units


class Order(NamedTuple):
    """An `Order` says in which order units close.

    Attributes:
        rank: (gates, largest size), float64 on the CPU: units of the same rank close
            together, lower ranks close first, and units at infinity never close
        length: number of ranks
        remainders: how many of the first ranks hold the units that exceed a multiple of
            `round_to`
    """

    rank: Tensor
    length: int
    remainders: int


@torch.no_grad()
def closing_order(
    gates: Mapping[Units, HardConcrete], scores: Sequence[Tensor] | None = None
) -> Order:
    """Rank the units of all gates.

    Args:
        gates: every gate, by the units that it controls
        scores: (units,) for each gate, where the lowest close first; by default their
            log_alphas, so that the least probable close first
    """
    # this runs on the CPU, since thousands of groups would each wait for a GPU
    shape = len(gates), max((len(gate.log_alpha) for gate in gates.values()), default=0)
    rank = torch.full(shape, torch.inf, dtype=torch.float64)
    score_of: ScoreOf = log_alpha_of
    if scores is not None:
        score_of = dict(zip(gates.values(), scores, strict=True)).__getitem__
    groups: dict[tuple, list[tuple[float, int, Tensor]]] = {}  # score, row, units
    for row, ((site, kind), gate) in enumerate(gates.items()):
        score = score_of(gate).to("cpu", copy=True)
        stays = site.protected(kind, score_of)
        if stays is not None:
            score[stays] = torch.inf
        score, order = score.sort()
        size, step = len(order), gate.round_to
        ends = list(range(size % step or step, size + 1, step))
        begins = [0, *ends[:-1]]
        if stays is not None:
            begins, ends = begins[:-1], ends[:-1]
        for place, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            # units that exceed a multiple go first of all
            first = step > 1 and end == size % step
            value = -torch.inf if first else float(score[begin:end].mean())
            together = (kind, size, place) if gate.uniform else (row, place)
            groups.setdefault(together, []).append((value, row, order[begin:end]))
    ordered = sorted(
        groups.values(), key=lambda members: sum(m[0] for m in members) / len(members)
    )
    for place, members in enumerate(ordered):
        for _, row, units in members:
            rank[row, units] = place
    remainders = sum(members[0][0] == -torch.inf for members in ordered)
    return Order(rank, len(ordered), remainders)

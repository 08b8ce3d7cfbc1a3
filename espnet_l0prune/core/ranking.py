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
    # this runs on the CPU, since each gate would wait for a GPU
    shape = len(gates), max((len(gate.log_alpha) for gate in gates.values()), default=0)
    rank = torch.full(shape, torch.inf, dtype=torch.float64)
    score_of: ScoreOf = log_alpha_of
    if scores is not None:
        score_of = dict(zip(gates.values(), scores, strict=True)).__getitem__
    units: list[tuple[Tensor, Tensor]] = []  # of a gate, in order; sizes of its groups
    values, numbers = [], []  # a group's score and number: those of one go together
    begins: dict[object, int] = {}  # the number of a gate's first group
    free = 0
    for row, ((site, kind), gate) in enumerate(gates.items()):
        score = score_of(gate).to("cpu", copy=True)
        stays = site.protected(kind, score_of)
        if stays is not None:
            score[stays] = torch.inf
        score, order = score.sort()
        step, over = gate.round_to, len(order) % gate.round_to
        value = score[over:].view(-1, step).mean(1).double()
        size = torch.full_like(value, step, dtype=torch.long)
        if over:  # units that exceed a multiple go first of all
            value = torch.cat([value.new_tensor([-torch.inf]), value])
            size = torch.cat([size.new_tensor([over]), size])
        if stays is not None:
            value, size = value[:-1], size[:-1]
        begin = begins.setdefault((kind, len(order)) if gate.uniform else row, free)
        free = max(free, begin + len(order))
        units.append((order, size))
        values.append(value)
        numbers.append(begin + torch.arange(len(value)))
    if not units:
        return Order(rank, 0, 0)
    number = torch.cat(numbers).unique(return_inverse=True)[1]
    members = number.bincount()
    mean = torch.zeros(len(members), dtype=torch.float64)
    mean = mean.index_add(0, number, torch.cat(values)) / members
    places = mean.argsort(stable=True).argsort()[number]
    split = places.split([len(size) for _, size in units])
    for row, ((order, size), place) in enumerate(zip(units, split, strict=True)):
        rank[row, order[: size.sum()]] = place.repeat_interleave(size).double()
    return Order(rank, len(members), int(mean.isneginf().sum()))

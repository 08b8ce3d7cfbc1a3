"""The worked example at the head of core/terms.py, beside an enumeration of all gates."""

import itertools
import math

import pytest
import torch
from torch import nn

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.sites import Site, Units
from espnet_l0prune.core.terms import Factor, Term

P, Q, HEADS = (1, 0.5, 0.5), (1, 1, 0.5), (0.5, 0.5)


class Example(Site):
    """Three channels that two kinds of gates control, and two heads."""

    name, kinds = "example", ("channels", "width", "heads")

    def __init__(self):
        self.place = nn.Module()

    @property
    def module(self) -> nn.Module:
        return self.place

    @property
    def sizes(self) -> dict[str, int]:
        return {"channels": 3, "width": 3, "heads": 2}

    def claims(self):
        return iter(())


def share(how: str, *kinds: str) -> float:
    """What one factor says is expected to stay."""
    site = Example()
    site.attach_(site.kinds)
    factor = Factor(how, tuple(Units(site, kind) for kind in kinds))
    budget = Budget([site], [Term("", {"params": 1, "macs": 0}, (factor,))])
    opened = torch.tensor([P, Q, (*HEADS, 0)], dtype=torch.float64)
    return float(budget.amounts(opened)[0, 0])


def expectation(probabilities: tuple[float, ...], left) -> float:
    """The mean of what gates of 0 and 1 leave, over all that can be drawn."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    drawn = (torch.tensor(z).double() for z in itertools.product((0, 1), repeat=len(p)))
    return sum(float(torch.where(z > 0, p, 1 - p).prod() * left(z)) for z in drawn)


@pytest.mark.parametrize(
    ("how", "kinds", "value", "probabilities", "left"),
    [
        ("mean", ["channels"], 2 / 3, P, lambda z: z.sum() / 3),
        ("pair", ["channels"], 4.5 / 9, P, lambda z: torch.outer(z, z).sum() / 9),
        ("both", ["channels", "width"], 1.75 / 3, P + Q, lambda z: z[:3] @ z[3:] / 3),
        ("mean", ["heads"], 0.5, HEADS, lambda z: z.sum() / 2),
        ("any", ["heads"], 0.75, HEADS, lambda z: z.max()),
    ],
)
def test_the_worked_example(how, kinds, value, probabilities, left):
    assert math.isclose(share(how, *kinds), value)
    assert math.isclose(expectation(probabilities, left), value)

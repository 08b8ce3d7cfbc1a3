"""A network of torch alone whose units can go, small enough to count by hand.

Its output is head(x + branch(x) + ...); a branch has channels, and can go as a whole.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.claims import (
    Claim,
    input_claims,
    output_claims,
    whole_output_claims,
)
from espnet_l0prune.core.gates import draw_all, log_alpha_of
from espnet_l0prune.core.sites import Call, Site
from espnet_l0prune.core.terms import terms_of

SIZE, CLASSES, FRAMES = 3, 2, 7


class Branch(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first, self.last = nn.Linear(SIZE, channels), nn.Linear(channels, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


class Network(nn.Module):
    def __init__(self, *channels: int):
        super().__init__()
        self.branches = nn.ModuleList(Branch(n) for n in channels)
        self.head = nn.Linear(SIZE, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + sum(branch(x) for branch in self.branches))


class Place(Site):
    kinds = ("modules", "channels")
    fine = alike = ("channels",)

    def __init__(self, network: Network, i: int, protect: bool = False):
        self.name, self.branch, self.protect = (
            f"branches.{i}",
            network.branches[i],
            protect,
        )

    @property
    def module(self) -> Branch:
        return self.branch

    @property
    def sizes(self) -> dict[str, int]:
        return {"modules": 1, "channels": self.branch.first.out_features}

    def claims(self) -> Iterator[Claim]:
        yield from whole_output_claims(self.branch.last, "modules")
        yield from output_claims(self.branch.first, "channels")
        yield from input_claims(self.branch.last, "channels", folds=True)

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        yield self.branch, ("modules",)

    def macs(self, shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        for call in shapes.get(self.branch.first, ()):
            yield call.output[1] * call.output[2], ("channels",)  # the activation

    def part(self, per: str) -> tuple[str, nn.Module]:
        return (self.name if per == "block" else "branch"), self.branch

    def protected(self, kind, score_of=log_alpha_of) -> int | None:
        gate = self.gates[kind]
        return int(score_of(gate).argmax()) if self.protect else None


def network(*channels: int, kinds=("channels",), seed: int = 0, **more):
    """A network, its sites with gates for these kinds, and their budget."""
    torch.manual_seed(seed)
    net = Network(*channels).double()
    net.register_forward_pre_hook(draw_all)
    protect = more.pop("protect", False)
    sites = [Place(net, i, protect) for i in range(len(channels))]
    for site in sites:
        site.attach_(kinds, **more)
    return net, sites, budget_of(net, sites)


def budget_of(net: Network, sites) -> Budget:
    shapes = {}
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            taken = torch.Size([1, FRAMES, layer.in_features])
            given = torch.Size([1, FRAMES, layer.out_features])
            shapes[layer] = [Call((taken,), given)]
    return Budget(sites, terms_of(net, sites, shapes))


def costs(left: Mapping[int, tuple[float, float]]) -> dict[str, float]:
    """Parameters and MACs of a network by hand.

    Args:
        left: by branch, how much of the module is left, and how many channels
    """
    params, macs = CLASSES * (SIZE + 1), FRAMES * CLASSES * SIZE
    for module, channels in left.values():
        params += module * (channels * (SIZE + 1) + channels * SIZE + SIZE)
        macs += module * FRAMES * channels * (2 * SIZE + 1)
    return {"params": params, "macs": macs}


def sparsity(whole: Mapping, left: Mapping) -> dict[str, float]:
    total, rest = costs(whole), costs(left)
    return {cost: 1 - rest[cost] / total[cost] for cost in total}


def set_(budget: Budget, *values: list[float]) -> None:
    """Give the gates these log_alphas, in the budget's order."""
    for gate, value in zip(budget.gates.values(), values, strict=True):
        gate.log_alpha.data = torch.tensor(value).to(gate.log_alpha)

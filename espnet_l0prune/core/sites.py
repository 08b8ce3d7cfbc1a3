"""What a site is, and which of its units remain: plain data between the stages.

`Plan` lists the surviving units, `Structure` only counts them:

    {"encoders.0.self_attn": {"heads": [0, 2]}, ...}    a plan
    {"encoders.0.self_attn": {"heads": 2}, ...}         its structure
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from espnet_l0prune.core.gates import HardConcrete

Plan = dict[str, dict[str, list[int]]]
Structure = dict[str, dict[str, int]]


class Site(ABC):
    """A place in a network where gates attach.

    It is a view: all state is in the modules, so it can be made anew at any time.

    Attributes:
        name: path of the module in the encoder, e.g. `encoders.0.self_attn`
    """

    name: str

    @property
    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """How many units of each kind there are now."""

    @property
    @abstractmethod
    def gates(self) -> dict[str, HardConcrete]:
        """The gates attached, by the kind of unit."""

    @abstractmethod
    def attach_(self, kinds: Sequence[str], open_probability: float) -> None:
        """Give the units of these kinds gates; kinds that are not here are ignored."""

    @abstractmethod
    def params(self, opened: Mapping[str, Tensor]) -> Tensor:
        """Parameters that remain: a scalar in float64.

        Args:
            opened: for each kind, (size,) in float64: probabilities of being open,
                for the expectation, or 0 and 1, for the count after a cut
        """

    @abstractmethod
    def fold_(self, values: Mapping[str, Tensor]) -> None:
        """Multiply gate values, (size,) for each kind, into the consumers' weights."""

    @abstractmethod
    def cut_(self, keep: Mapping[str, Sequence[int]]) -> None:
        """Keep only these units, and remove the gates. Unnamed kinds keep all."""


class Budget:
    """Parameters of a network as a differentiable function of its gates.

    S = 1 - params(z) / total, where total counts everything in scope, prunable or
    not (Jiang et al. 2023, section 2.2, with the exact count of the cut network).

    Args:
        sites: the sites in scope, with or without gates
        total: parameters in scope, all gates open
    """

    def __init__(self, sites: Sequence[Site], total: int):
        self.sites, self.total = list(sites), total
        ones = [_all_open(site) for site in self.sites]
        self.fixed = total - float(self._sum(ones))

    def _sum(self, opened: Sequence[Mapping[str, Tensor]]) -> Tensor:
        costs = [s.params(o) for s, o in zip(self.sites, opened, strict=True)]
        return torch.stack(costs).sum() if costs else torch.zeros((), dtype=torch.float64)

    def sparsity(self, opened: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Share of `total` that is gone, given what is open at each site."""
        return 1 - (self.fixed + self._sum(opened)) / self.total

    def _gated(self, read) -> Tensor:
        return self.sparsity(
            [
                _all_open(site) | {k: read(g) for k, g in site.gates.items()}
                for site in self.sites
            ]
        )

    def expected(self) -> Tensor:
        """Expected sparsity; differentiable in every log_alpha."""
        return self._gated(HardConcrete.probability)

    @torch.no_grad()
    def actual(self) -> float:
        """Sparsity of the network that a cut of the open gates would leave."""
        return float(self._gated(lambda gate: gate.is_open().double()))

    @torch.no_grad()
    def reachable(self) -> float:
        """The largest sparsity: that of all gates closed."""
        return float(self._gated(lambda gate: torch.zeros_like(gate.probability())))


def _all_open(site: Site) -> dict[str, Tensor]:
    """Every unit of the site open, on the site's device."""
    device = next((g.log_alpha.device for g in site.gates.values()), None)
    return {
        kind: torch.ones(size, dtype=torch.float64, device=device)
        for kind, size in site.sizes.items()
    }


def structure_of(sites: Sequence[Site]) -> Structure:
    """Count the units of every site."""
    return {site.name: dict(site.sizes) for site in sites}


def plan_of(sites: Sequence[Site]) -> Plan:
    """List the units whose gates are open; units without a gate all remain."""
    plan: Plan = {}
    for site in sites:
        plan[site.name] = {k: list(range(n)) for k, n in site.sizes.items()}
        for kind, gate in site.gates.items():
            plan[site.name][kind] = gate.is_open().nonzero().flatten().tolist()
    return plan


@torch.no_grad()
def decide_(sites: Sequence[Site], plan: Plan) -> None:
    """Fix every gate to 0 or 1 as planned.

    A surviving gate's soft value is folded into the weights first, so that what
    the network computes changes only by the units that the plan closes.
    """
    for site in sites:
        values, keeps = {}, {}
        for kind, gate in site.gates.items():
            keep = torch.zeros_like(gate.log_alpha, dtype=torch.bool)
            keep[plan[site.name][kind]] = True
            values[kind] = torch.where(keep, gate.values(), 1.0)
            keeps[kind] = keep
        site.fold_(values)
        for kind, gate in site.gates.items():
            gate.decide_(keeps[kind])


@torch.no_grad()
def select(budget: Budget, target: float, tolerance: float = 1e-3) -> Plan:
    """Close the least probable units until the real count meets the target.

    The sparsity of the plan is at least `target`. A unit that would overshoot it by
    more than `tolerance` is passed over as long as smaller ones can fill the gap.

    Raises:
        ValueError: the units cannot reach the target
    """
    if target > budget.reachable():
        raise ValueError(
            f"target sparsity {target} is beyond what the units reach, "
            f"{budget.reachable():.4f}; choose a lower target or more kinds of units"
        )
    # (log_alpha, site, kind, index) of every unit, the least probable first
    units = sorted(
        (alpha, i, kind, j)
        for i, site in enumerate(budget.sites)
        for kind, gate in site.gates.items()
        for j, alpha in enumerate(gate.log_alpha.tolist())
    )

    def opened(closed) -> list[dict[str, Tensor]]:
        sites = [_all_open(site) for site in budget.sites]
        for _, i, kind, j in closed:
            sites[i][kind][j] = 0
        return sites

    def sparsity(closed) -> float:
        return float(budget.sparsity(opened(closed)))

    closed: list = []
    best = None  # the smallest overshoot seen: (sparsity, units to close)
    if sparsity(closed) >= target:
        best = (sparsity(closed), closed)
    while best is None or (units and best[0] > target + tolerance):
        if sparsity(closed + units) < target:
            break  # what was passed over is needed
        low, high = 0, len(units)  # close units[:high]: enough; units[:low]: too few
        while high - low > 1:
            middle = (low + high) // 2
            if sparsity(closed + units[:middle]) < target:
                low = middle
            else:
                high = middle
        reached = sparsity(closed + units[:high])
        if best is None or reached < best[0]:
            best = (reached, closed + units[:high])
        closed, units = closed + units[: high - 1], units[high:]
    return {
        site.name: {k: kept.nonzero().flatten().tolist() for k, kept in left.items()}
        for site, left in zip(budget.sites, opened(best[1]), strict=True)
    }

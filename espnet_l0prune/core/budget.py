"""A budget computes a network's sparsity in each cost, differentiably in its gates.

Gates are drawn independently, so the expectation of a product over different gates is the
product of their expectations (see `terms`). With gates of 0 and 1 the result is the exact
count of the cut network. Time is not counted, but read from tables (see `timing`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_l0prune.core.costs import TIME, counted
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.profile import Profile
from espnet_l0prune.core.ranking import closing_order
from espnet_l0prune.core.sites import Site, Units
from espnet_l0prune.core.terms import Factor, Term
from espnet_l0prune.core.timing import Timing


class Budget:
    """A `Budget` turns gates into sparsities.

    The sparsity in a cost is the share of the total that pruning removes, where the total
    includes what cannot be pruned (Jiang et al. 2023, arXiv 2305.19549, section 2.2, with
    the exact count of the cut network).

    Args:
        sites: all sites of the network, with or without gates
        terms: what `terms_of` returns for these sites
        profile: what a device measured; without one, time is none of the costs

    Attributes:
        gates: every gate, by the units that it controls
        totals: the amount of each cost with all units open; that of time in seconds

    Raises:
        ValueError: see `Timing`
    """

    def __init__(
        self,
        sites: Sequence[Site],
        terms: Sequence[Term],
        profile: Profile | None = None,
    ):
        self.sites, self.terms = list(sites), list(terms)
        self.gates: dict[Units, HardConcrete] = {
            Units(site, kind): gate
            for site in self.sites
            for kind, gate in site.gates.items()
        }
        device = next((g.log_alpha.device for g in self.gates.values()), None)
        rows = {units: row for row, units in enumerate(self.gates)}
        self._sizes = torch.tensor(
            [gate.log_alpha.numel() for gate in self.gates.values()],
            dtype=torch.float64,
            device=device,
        )
        places = torch.arange(int(max(self._sizes, default=0)), device=device)
        self._there = (places < self._sizes[:, None]).double()
        types = [type(gate) for gate in self.gates.values()]
        self._there_by_type = {
            one: self._there * self._sizes.new_tensor([[t is one] for t in types])
            for one in dict.fromkeys(types)
        }
        factors = list(dict.fromkeys(f for term in self.terms for f in term.factors))
        couples = [factor.units for factor in factors if factor.how == "both"]
        # `_values` holds 1, then mean, any and pair of each gate, then each `both`.
        n = len(rows)
        start = {"mean": 1, "any": 1 + n, "pair": 1 + 2 * n}
        place_of = {
            factor: start[factor.how] + rows[factor.units[0]]
            for factor in factors
            if factor.how != "both"
        }
        for j, units in enumerate(couples):
            place_of[Factor("both", units)] = 1 + 3 * n + j
        self._couple_rows = torch.tensor(
            [[rows[each] for each in units] for units in couples],
            dtype=torch.long,
            device=device,
        ).view(-1, 2)
        width = max((len(term.factors) for term in self.terms), default=0)
        self._table = torch.zeros(len(self.terms), width, dtype=torch.long)
        for i, term in enumerate(self.terms):
            for j, factor in enumerate(term.factors):
                self._table[i, j] = place_of[factor]
        self._table = self._table.to(device)
        self._amounts = torch.tensor(
            [[term.amounts[cost] for cost in counted()] for term in self.terms],
            dtype=torch.float64,
            device=device,
        ).view(-1, len(counted()))
        self._timing = None
        if profile is not None:
            self._timing = Timing(profile, self.sites, rows, device)
        whole = self.left(self._there)
        self.totals = {cost: float(amount) for cost, amount in whole.items()}

    def _values(self, opened: Tensor) -> Tensor:
        """Return the values of all factors, in the order of `place_of`."""
        one = opened.new_ones(1)
        if not self.gates:
            return one
        count, n = opened.sum(1), self._sizes
        mean = count / n
        either = 1 - (1 - opened).prod(1)
        pair = (count.square() - opened.square().sum(1) + count) / n.square()
        first, second = self._couple_rows.unbind(1)
        both = (opened[first] * opened[second]).sum(1) / n[first]
        return torch.cat([one, mean, either, pair, both])

    def amounts(self, opened: Tensor) -> Tensor:
        """Return what is left of each term, (terms, costs that are counted).

        Args:
            opened: (gates, largest size) in float64, 0 beyond a gate's size:
                probabilities of being open, or 0 and 1
        """
        shares = self._values(opened)[self._table].prod(1)
        return shares[:, None] * self._amounts

    def left(self, opened: Tensor) -> dict[str, Tensor]:
        """Return how much is left of each cost, as scalars; see `amounts`."""
        left = dict(zip(counted(), self.amounts(opened).sum(0), strict=True))
        if self._timing is not None:
            left[TIME] = self._timing(opened)
        return left

    def sparsity(self, opened: Tensor) -> dict[str, Tensor]:
        """Return the share of each cost that is removed, in [0, 1].

        A cost whose total is 0, such as MACs that were not counted, is left out.

        Args:
            opened: see `amounts`
        """
        return {
            cost: 1 - left / self.totals[cost]
            for cost, left in self.left(opened).items()
            if self.totals[cost]
        }

    def _padded(self, read: Callable[[type[HardConcrete], Tensor], Tensor]) -> Tensor:
        """Apply a function to all log_alphas at once.

        Args:
            read: takes a type of gate and log_alphas, and returns values of the same
                shape

        Returns:
            the values, (gates, largest size), with 0 beyond a gate's size
        """
        if not self.gates:
            return self._there
        alphas = [gate.log_alpha for gate in self.gates.values()]
        alphas = pad_sequence(alphas, batch_first=True)
        parts = [read(t, alphas) * own for t, own in self._there_by_type.items()]
        return sum(parts[1:], parts[0])

    def log_alpha(self) -> Tensor:
        """Return the log_alphas of all gates in one row, (units of all gates,)."""
        return torch.cat([gate.log_alpha for gate in self.gates.values()])

    def expected(self) -> dict[str, Tensor]:
        """Return the expected sparsity in each cost, differentiable in every gate."""
        return self.sparsity(
            self._padded(lambda gate, a: torch.sigmoid(a.double() + gate.shift))
        )

    @torch.no_grad()
    def new(self) -> dict[str, float]:
        """Return the expected sparsity in each cost while no gate has moved yet."""
        start = [[gate.open_probability] for gate in self.gates.values()]
        opened = self._there * self._sizes.new_tensor(start).view(-1, 1)
        return {k: float(v) for k, v in self.sparsity(opened).items()}

    @torch.no_grad()
    def opened(self) -> Tensor:
        """Return which gates are open in evaluation, in the form that `amounts` takes."""
        return self._padded(lambda gate, a: gate.noise_free(a) > 0)

    def all_open(self) -> Tensor:
        """Return a state with every gate open, in the form that `amounts` takes."""
        return self._there.clone()

    @torch.no_grad()
    def actual(self) -> dict[str, float]:
        """Return the sparsity of the network that a cut of closed units would leave."""
        return {k: float(v) for k, v in self.sparsity(self.opened()).items()}

    @torch.no_grad()
    def reachable(self) -> dict[str, float]:
        """Return the largest sparsity, where only the units are open that must stay."""
        stays = self.all_open() * closing_order(self.gates).rank.isinf().to(self._sizes)
        return {k: float(v) for k, v in self.sparsity(stays).items()}

    def remaining(self, cost: str = "params") -> float:
        """Return how much of a cost the open gates leave."""
        return self.totals[cost] * (1 - self.actual()[cost])

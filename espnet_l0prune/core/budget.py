"""What a network costs, as a differentiable function of its gates.

Every tensor of a network is a term: a cost with all units open, times one factor for
each group of units that it shrinks with. Gates are independent, so the expectation of
a product over different gates is the product of the expectations::

    mean   (1/n) sum_u p_u: a dimension of the tensor belongs to the units
    both   (1/n) sum_u p_u q_u: to the units that two gates leave open
    pair   ((sum_u p_u)^2 - sum_u p_u^2 + sum_u p_u) / n^2: two of its dimensions do,
           since a gate that meets itself gives p, not p^2
    any    1 - prod_u (1 - p_u): the tensor stays as long as some unit does

At p in {0, 1} this counts the parameters of the cut network exactly.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet_l0prune.core.gates import HardConcrete, LogAlpha, ScoreOf, log_alpha_of
from espnet_l0prune.core.sites import Claim, Plan, Shapes, Site, make_plan

COSTS = ("params", "macs")
Key = tuple[int, str]  # a site, by its place in the list, and a kind of its units
Factor = tuple[str, tuple[Key, ...]]  # how, and of which units


@dataclass(frozen=True)
class Term:
    """A cost with all units open, and what it shrinks with.

    Attributes:
        owner: path of the module in the network
        params: parameters
        macs: multiply-accumulates
        factors: see the head of this file
    """

    owner: str
    params: float
    macs: float
    factors: tuple[Factor, ...]


def count_parameters(*modules: nn.Module | None) -> int:
    """Parameters of the modules, gates aside."""
    return sum(
        p.numel()
        for module in modules
        if module is not None
        for p in module.parameters()
        if not isinstance(p, LogAlpha)
    )


def terms_of(network: nn.Module, sites: Sequence[Site], shapes: Shapes) -> list[Term]:
    """One term for each parameter of a network, and for what the sites add.

    Args:
        network: all that is counted
        sites: those whose gates count; the others' units are taken as open
        shapes: of the calls of one forward; none, and there are no MACs
    """
    claims: dict[tuple[nn.Module, str], list[tuple[Key, Claim]]] = {}
    dependents: dict[nn.Module, dict[Factor, None]] = {}
    paths = {module: path for path, module in network.named_modules()}
    extra = []
    for i, site in enumerate(sites):
        gated = site.gates
        for claim in site.claims():
            if claim.kind in gated:
                where = claim.module, claim.tensor
                claims.setdefault(where, []).append(((i, claim.kind), claim))
        for root, kinds in site.dependents():
            for module in root.modules():
                for kind in kinds:
                    if kind in gated:
                        factor = "any", ((i, kind),)
                        dependents.setdefault(module, {})[factor] = None
        for macs, kinds in site.macs(shapes):
            keys = [(i, kind) for kind in kinds if kind in gated]
            extra.append((site.module, macs, keys))
    terms = []
    for module, path in paths.items():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, LogAlpha):
                continue
            numel, positions = parameter.numel(), 0
            if name == "weight" and isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                # of a layer cut in width, the output is scattered back to full width
                size = getattr(module, "stream_size", parameter.size(0))
                calls = shapes.get(module, ())
                positions = sum(math.prod(call.output) // size for call in calls)
            factors = _factors(claims.get((module, name), ()), dependents.get(module, ()))
            terms.append(Term(path, numel, numel * positions, factors))
    for module, macs, keys in extra:
        means = {("mean", (key,)): None for key in keys}
        lost = [f for f in dependents.get(module, ()) if f[1][0] not in keys]
        terms.append(Term(paths[module], 0, macs, (*means, *lost)))
    return terms


def _factors(
    claims: Iterable[tuple[Key, Claim]], dependents: Iterable[Factor]
) -> tuple[Factor, ...]:
    """How a tensor shrinks: what claims its dimensions, and what it depends on."""
    by_layout: dict[tuple, list[Key]] = {}
    for key, claim in claims:
        by_layout.setdefault((claim.dim, claim.inner, claim.outer), []).append(key)
    factors: dict[Factor, None] = {}
    for keys in by_layout.values():
        factor = ("mean" if len(keys) == 1 else "both", tuple(keys))
        if factor in factors:  # the same units in another dimension
            del factors[factor]
            factor = ("pair", tuple(keys))
        factors[factor] = None
    claimed = {key for _, keys in factors for key in keys}
    for factor in dependents:  # no units left: nothing left, so a mean says it already
        if factor[1][0] not in claimed:
            factors[factor] = None
    return tuple(factors)


class Budget:
    """Sparsity of a network in each cost, from its gates.

    The sparsity in a cost is the share that is gone of all that is counted, prunable
    or not (Jiang et al. 2023, arXiv 2305.19549, section 2.2, with the exact count of the
    cut network).

    Args:
        sites: all of the network, with or without gates
        terms: from `terms_of`, for these sites in this order

    Attributes:
        gates: by the place of a site in `sites` and the kind of its units
        totals: by cost, the parameters and MACs with all units open
    """

    def __init__(self, sites: Sequence[Site], terms: Sequence[Term]):
        self.sites, self.terms = list(sites), list(terms)
        self.gates: dict[Key, HardConcrete] = {
            (i, kind): gate
            for i, site in enumerate(self.sites)
            for kind, gate in site.gates.items()
        }
        device = next((g.log_alpha.device for g in self.gates.values()), None)
        rows = {key: row for row, key in enumerate(self.gates)}
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
        self._couples = [f[1] for f in factors if f[0] == "both"]
        # Places in the vector of `_values`: 1, then mean, any, pair of each gate, both.
        n = len(rows)
        start = {"mean": 1, "any": 1 + n, "pair": 1 + 2 * n}
        places = {
            (how, keys): start[how] + rows[keys[0]]
            for how, keys in factors
            if how != "both"
        }
        for j, keys in enumerate(self._couples):
            places["both", keys] = 1 + 3 * n + j
        self._couple_rows = torch.tensor(
            [[rows[key] for key in keys] for keys in self._couples],
            dtype=torch.long,
            device=device,
        ).view(-1, 2)
        width = max((len(term.factors) for term in self.terms), default=0)
        self._table = torch.zeros(len(self.terms), width, dtype=torch.long)
        for i, term in enumerate(self.terms):
            for j, factor in enumerate(term.factors):
                self._table[i, j] = places[factor]
        self._table = self._table.to(device)
        self._amounts = torch.tensor(
            [[term.params, term.macs] for term in self.terms],
            dtype=torch.float64,
            device=device,
        ).view(-1, 2)
        totals = self._amounts.sum(0).tolist()
        self.totals = dict(zip(COSTS, totals, strict=True))

    def _values(self, opened: Tensor) -> Tensor:
        """The factors' values, in the order of `places`; opened: (gates, max. size)."""
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
        """Each term's parameters and MACs, (terms, 2).

        Args:
            opened: (gates, largest size) in float64, 0 beyond a gate's size:
                probabilities of being open, or 0 and 1
        """
        shares = self._values(opened)[self._table].prod(1)
        return shares[:, None] * self._amounts

    def sparsity(self, opened: Tensor) -> dict[str, Tensor]:
        """Share of each cost that is gone, in [0, 1]; none of one that was not counted.

        Args:
            opened: as `amounts` takes it
        """
        left = self.amounts(opened).sum(0)
        return {
            cost: 1 - left[i] / self.totals[cost]
            for i, cost in enumerate(COSTS)
            if self.totals[cost]
        }

    def _padded(self, read: Callable[[type[HardConcrete], Tensor], Tensor]) -> Tensor:
        """What `read` makes of all log_alphas, (gates, largest size), by the gates' type;
        0 beyond a gate's size."""
        if not self.gates:
            return self._there
        alphas = [gate.log_alpha for gate in self.gates.values()]
        alphas = pad_sequence(alphas, batch_first=True)
        parts = [read(t, alphas) * own for t, own in self._there_by_type.items()]
        return sum(parts[1:], parts[0])

    def log_alpha(self) -> Tensor:
        """Of all gates, in one row: (units of all gates,)."""
        return torch.cat([gate.log_alpha for gate in self.gates.values()])

    def expected(self) -> dict[str, Tensor]:
        """Expected sparsity in each cost; differentiable in every log_alpha."""
        return self.sparsity(
            self._padded(lambda gate, a: torch.sigmoid(a.double() + gate.shift))
        )

    @torch.no_grad()
    def opened(self) -> Tensor:
        """Which gates are open when the network is evaluated, as `amounts` takes it."""
        return self._padded(lambda gate, a: gate.noise_free(a) > 0)

    def all_open(self) -> Tensor:
        """All gates open, as `amounts` takes it."""
        return self._there.clone()

    @torch.no_grad()
    def actual(self) -> dict[str, float]:
        """Sparsity of the network that a cut of the open gates would leave."""
        return {k: float(v) for k, v in self.sparsity(self.opened()).items()}

    @torch.no_grad()
    def reachable(self) -> dict[str, float]:
        """The largest sparsity: that of all gates closed that may be."""
        rank, *_ = _ranks(self)
        stays = self.all_open() * rank.isinf()
        return {k: float(v) for k, v in self.sparsity(stays).items()}

    def remaining(self, cost: str = "params") -> float:
        """What the open gates leave of a cost, in parameters or MACs."""
        return self.totals[cost] * (1 - self.actual()[cost])


def split(budget: Budget, network: nn.Module, per: str) -> dict[str, Budget]:
    """A budget for each part of a network that has gates.

    Args:
        budget: of the whole network
        network: what it counts
        per: `block`, or `kind` of module

    Returns:
        budgets by the name of the part

    Raises:
        ValueError: gates that belong to no one part; `uniform` ones, for each block
    """
    members: dict[str, list[int]] = {}
    part_of: dict[nn.Module, str] = {}
    for i, site in enumerate(budget.sites):
        part = site.part(per)
        if part is not None:
            name, root = part
            part_of.update(dict.fromkeys(root.modules(), name))
        if per == "block" and any(gate.uniform for gate in site.gates.values()):
            raise ValueError(
                "uniform: true keeps as many units in every block, and per: block has "
                "each block find its own; expected one of them"
            )
        if site.gates:
            if part is None:
                raise ValueError(
                    f"a target for each {per} cannot hold {', '.join(site.gates)}, "
                    f"which reach beyond a {per} ({site.name}); expected units without "
                    "them, or one target for all"
                )
            members.setdefault(name, []).append(i)
    modules = dict(network.named_modules())
    terms: dict[str, list[Term]] = {name: [] for name in members}
    for term in budget.terms:
        part_name = part_of.get(modules[term.owner])
        if part_name in members:
            place = {old: new for new, old in enumerate(members[part_name])}
            factors = tuple(
                (how, tuple((place[i], kind) for i, kind in keys))
                for how, keys in term.factors
            )
            terms[part_name].append(replace(term, factors=factors))
    return {
        name: Budget([budget.sites[i] for i in sites], terms[name])
        for name, sites in members.items()
    }


def check_reachable(budget: Budget, targets: Mapping[str, float]) -> None:
    """Raise ValueError where the units cannot reach a target; name what they reach."""
    reachable = budget.reachable()
    for cost, target in targets.items():
        if cost not in reachable:
            raise ValueError(
                f"target has {cost}, which were not counted for this budget; expected "
                f"some of {', '.join(reachable)}"
            )
        if target > reachable[cost]:
            raise ValueError(
                f"the target sparsity in {cost} is {target}, but these units reach at "
                f"most {reachable[cost]:.4f} of the {budget.totals[cost]:,.0f} in scope; "
                "choose a lower target or add kinds of units"
            )


def check_compatible(
    budget: Budget, targets: Mapping[str, float], tolerance: float = 0.03
) -> None:
    """Raise ValueError for targets of which one takes more of another cost than its
    target.

    The least that goes of a cost with a target in another one is found by closing the
    units that take least of it first: close, and no bound, hence the tolerance, a
    difference of sparsities.
    """
    for given, target in targets.items():
        for cost, other in targets.items():
            least = _least(budget, given, target, cost) if cost != given else 0.0
            if least > other + tolerance:
                raise ValueError(
                    f"the targets contradict each other: a sparsity of {target} in "
                    f"{given} takes about {least:.3f} of the {cost} along at least, and "
                    f"their target is {other}. Raise the target in {cost}, leave it out, "
                    "or take sparsity_constraint: inequality, which asks for at least "
                    "so much."
                )


@torch.no_grad()
def _least(
    budget: Budget, given: str, target: float, cost: str, steps: int = 10
) -> float:
    """About the least sparsity in `cost` that comes with the target in `given`.

    What a unit takes depends on what is closed already: prices are asked anew in steps.
    """
    sizes, opened = budget._sizes.int().tolist(), budget.all_open()
    for step in range(1, steps + 1):
        with torch.enable_grad():
            at = opened.clone().requires_grad_()
            sparsity = budget.sparsity(at)
            takes, gives = (
                torch.autograd.grad(-sparsity[c], at, retain_graph=True)[0]
                for c in (cost, given)
            )
        price = (takes + 1e-12) / (gives + 1e-12)
        price[opened == 0] = -torch.inf  # these are closed
        scores = [row[:n] for row, n in zip(price, sizes, strict=True)]
        rank, high, _ = _ranks(budget, scores)
        low, full = -1, budget.all_open()
        while high - low > 1:
            middle = (low + high) // 2
            reached = budget.sparsity(full * (rank >= middle))[given]
            enough = reached >= target * step / steps
            low, high = (low, middle) if enough else (middle, high)
        opened = full * (rank >= high)
    return float(budget.sparsity(opened)[cost])


@torch.no_grad()
def select(
    budget: Budget,
    targets: Mapping[str, float],
    tolerance: float = 1e-3,
    scores: Sequence[Tensor] | None = None,
) -> Plan:
    """Close the least probable units until the real counts meet the targets.

    The plan's sparsity is at least the target in each cost. A unit that would overshoot
    by more than `tolerance` is passed over as long as smaller ones can fill the gap. What
    large units made needless stays open: if any more did, a target would be missed.
    Units go in groups of their gate's `round_to`.

    Args:
        budget: counts the network
        targets: sparsity by cost
        tolerance: how far beyond the target nearest to it a plan should be at most, as a
            share of that cost
        scores: (units,) of each gate, in the budget's order, instead of probabilities:
            the lowest close first

    Raises:
        ValueError: the units cannot reach the targets
    """
    check_reachable(budget, targets)
    rank, number, remainders = _ranks(budget, scores)
    full, order = budget.all_open(), rank.clone()

    def beyond(closed: Tensor) -> float:
        """How far a plan is beyond the target that it meets least."""
        sparsity = budget.sparsity(full * ~closed)
        return min(float(sparsity[cost]) - target for cost, target in targets.items())

    def excess(closing: int) -> float:
        return beyond(rank < closing)

    low, fewest = 0, 0 if excess(0) >= 0 else number
    # the smallest excess seen, and what is closed there
    best = excess(fewest), rank < fewest
    while best[0] > tolerance:
        high = number
        if low == high or excess(high) < 0:
            break  # what was passed over is needed
        while high - low > 1:  # groups below high: enough; below low: too few
            middle = (low + high) // 2
            if excess(middle) < 0:
                low = middle
            else:
                high = middle
        if excess(high) < best[0]:
            best = excess(high), rank < high
        rank[rank == high - 1] = torch.inf
        low = high
    closed = best[1]
    if best[0] > tolerance:
        groups = order[closed].unique().flip(0)  # the most probable first
        groups = groups[groups >= remainders]
        closed = _without_needless(closed, order, groups, beyond, tolerance)
    kept = {
        key: ~closed[row, : len(gate.log_alpha)]
        for row, (key, gate) in enumerate(budget.gates.items())
    }
    return make_plan(budget.sites, lambda i, kind: kept[i, kind])


def _without_needless(
    closed: Tensor,
    order: Tensor,
    groups: Tensor,
    beyond: Callable[[Tensor], float],
    tolerance: float,
) -> Tensor:
    """What must be closed of this: groups are opened in turn, as many at a time as the
    targets allow; one that they do not is passed over.

    Args:
        closed, order: of each gate's units, (gates, largest size)
        groups: by their places in the order
        beyond: how far a plan is beyond its targets
        tolerance: how far it may be
    """
    begin, count, excess = 0, 1, beyond(closed)
    while begin < len(groups) and excess > tolerance:
        fewer = closed & ~torch.isin(order, groups[begin : begin + count])
        left = beyond(fewer)
        if left >= 0:
            closed, excess, begin, count = fewer, left, begin + count, 2 * count
        elif count > 1:
            count //= 2
        else:
            begin += 1
    return closed


def _ranks(
    budget: Budget, scores: Sequence[Tensor] | None = None
) -> tuple[Tensor, int, int]:
    """The order in which units close, (gates, largest size), and its length; and how many
    of its first are remainders, which exceed a multiple of `round_to`.

    Units of a rank go together; those at infinity stay.

    Args:
        scores: of each gate's units: the lowest go first; by default the least probable
    """
    # on the CPU: a GPU would be waited for at each of thousands of groups
    full = budget.all_open()
    rank = torch.full_like(full, torch.inf, device="cpu")
    score_of: ScoreOf = log_alpha_of
    if scores is not None:
        score_of = dict(zip(budget.gates.values(), scores, strict=True)).__getitem__
    groups: dict[tuple, list[tuple[float, int, Tensor]]] = {}  # score, row, units
    for row, ((i, kind), gate) in enumerate(budget.gates.items()):
        score = score_of(gate).to("cpu", copy=True)
        stays = budget.sites[i].protected(kind, score_of)
        if stays is not None:
            score[stays] = torch.inf
        score, order = score.sort()
        size, step = len(order), gate.round_to
        ends = list(range(size % step or step, size + 1, step))
        begins = [0, *ends[:-1]]
        if stays is not None:
            begins, ends = begins[:-1], ends[:-1]
        for place, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            # what exceeds a multiple goes first of all
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
    return rank.to(full.device), len(ordered), remainders

"""What a network costs and which units close, beside sums written out by hand."""

import itertools

import pytest
import torch

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.feasibility import _least, check_compatible, check_reachable
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.gates import AdaptiveDropout
from espnet_l0prune.core.parts import split
from espnet_l0prune.core.selection import _without_needless, select
from espnet_l0prune.core.sites import Call
from espnet_l0prune.core.terms import count_parameters, terms_of
from tests.core.branches import (
    CLASSES,
    FRAMES,
    SIZE,
    Place,
    budget_of,
    costs,
    network,
    set_,
    sparsity,
)

BOTH = ("modules", "channels")


def closed(plan, sites) -> list[list[int]]:
    """Of each site, the channels that go."""
    gone = []
    for site in sites:
        kept = plan[site.name]["channels"]
        gone.append([u for u in range(site.sizes["channels"]) if u not in kept])
    return gone


def opened(budget: Budget, *rows: list[float]) -> torch.Tensor:
    found = torch.zeros_like(budget.all_open())
    for row, values in zip(found, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return found


# Counting


def test_totals_and_parameters():
    net, sites, budget = network(4, 6, kinds=BOTH)
    whole = {0: (1, 4), 1: (1, 6)}
    assert budget.totals == costs(whole)
    assert count_parameters(net) == count_parameters(net.branches, net.head, None)
    assert count_parameters(net) == costs(whole)["params"]  # the gates are not counted
    assert list(budget.gates) == [(site, kind) for site in sites for kind in BOTH]


@pytest.mark.parametrize("seed", range(3))
def test_costs_of_any_shares_are_the_products(seed):
    _, _, budget = network(4, 6, kinds=BOTH)
    torch.manual_seed(seed)
    m, c = torch.rand(2).tolist(), [torch.rand(4).tolist(), torch.rand(6).tolist()]
    found = budget.sparsity(opened(budget, [m[0]], c[0], [m[1]], c[1]))
    whole = {0: (1, 4), 1: (1, 6)}
    left = {i: (m[i], sum(c[i])) for i in (0, 1)}
    assert {k: float(v) for k, v in found.items()} == pytest.approx(sparsity(whole, left))


def test_expected_and_actual_sparsity():
    _, _, budget = network(4, 6)
    assert budget.actual() == {"params": 0, "macs": 0}
    set_(budget, [1.0, -9.0, 0.0, 9.0], [9.0, 9.0, -9.0, -9.0, 2.0, -9.0])
    whole = {0: (1, 4), 1: (1, 6)}
    assert budget.actual() == pytest.approx(sparsity(whole, {0: (1, 3), 1: (1, 3)}))
    left = {
        i: (1, float(gate.probability().sum()))
        for i, gate in enumerate(budget.gates.values())
    }
    found = {k: float(v) for k, v in budget.expected().items()}
    assert found == pytest.approx(sparsity(whole, left))
    assert budget.remaining() == pytest.approx(costs({0: (1, 3), 1: (1, 3)})["params"])
    assert budget.remaining("macs") == pytest.approx(
        costs({0: (1, 3), 1: (1, 3)})["macs"]
    )
    alphas = [gate.log_alpha for gate in budget.gates.values()]
    assert torch.equal(budget.log_alpha(), torch.cat(alphas))
    # each unit's gradient: its price times the slope of its probability
    for gate, row in zip(
        budget.gates.values(),
        torch.autograd.grad(budget.expected()["params"], alphas),
        strict=True,
    ):
        p = gate.probability().detach()
        price = -(2 * SIZE + 1) / budget.totals["params"]
        torch.testing.assert_close(row, (price * p * (1 - p)).to(row))


def test_gates_of_two_types_are_each_read_in_their_way():
    net, sites, _ = network(2, 2)
    sites[1].attach_(["channels"], gate_type=AdaptiveDropout)
    budget = budget_of(net, sites)
    set_(budget, [-1.0, -1.0], [-1.0, 1.0])
    # without noise a hard-concrete gate is closed from about -2.4 on
    assert budget.opened().tolist() == [[1, 1], [0, 1]]
    probabilities = torch.stack([gate.probability() for gate in budget.gates.values()])
    assert float(budget.expected()["params"]) == pytest.approx(
        float(budget.sparsity(probabilities)["params"])
    )


def test_without_gates_nothing_is_gone():
    _, sites, budget = network(4, kinds=())
    assert budget.totals == costs({0: (1, 4)})
    assert budget.actual() == {"params": 0, "macs": 0}
    bare = Budget(sites, [])
    assert bare.totals == {"params": 0, "macs": 0}
    assert bare.sparsity(bare.all_open()) == {}  # nothing was counted


def test_a_layer_cut_in_width_is_charged_for_the_features_it_has_left():
    net, sites, _ = network(4)
    layer = net.branches[0].last  # gives 2 of 3 features, at their places among 3
    layer.weight.data, layer.bias.data = layer.weight.data[:2], layer.bias.data[:2]
    call = Call((torch.Size([1, FRAMES, 4]),), torch.Size([1, FRAMES, SIZE]))
    terms = terms_by_owner(net, sites, {layer: [call, call]})
    weight, bias = terms["branches.0.last"]
    # of two calls
    assert weight.amounts == {"params": 2 * 4, "macs": 2 * FRAMES * 2 * 4}
    assert bias.amounts == {"params": 2, "macs": 0}


def terms_by_owner(net, sites, shapes) -> dict[str, list]:
    found: dict[str, list] = {}
    for term in terms_of(net, sites, shapes):
        found.setdefault(term.owner, []).append(term)
    return found


# Selecting


def test_what_is_reachable_and_what_is_not():
    _, _, budget = network(4, 6)
    whole, none = {0: (1, 4), 1: (1, 6)}, {0: (1, 0), 1: (1, 0)}
    most = sparsity(whole, none)
    assert budget.reachable() == pytest.approx(most)
    check_reachable(budget, most)
    with pytest.raises(ValueError, match="reach at most"):
        check_reachable(budget, {"macs": most["macs"] + 1e-6})
    # what protects a unit of each site, or a multiple, leaves it
    _, _, guarded = network(4, 6, protect=True)
    assert guarded.reachable() == pytest.approx(sparsity(whole, {0: (1, 1), 1: (1, 1)}))
    _, _, guarded = network(5, 6, protect=True, round_to=2)
    whole = {0: (1, 5), 1: (1, 6)}
    assert guarded.reachable() == pytest.approx(sparsity(whole, {0: (1, 2), 1: (1, 2)}))


@pytest.mark.parametrize("count", range(11))
def test_the_least_probable_close_and_no_more_of_them_than_needed(count):
    """All channels cost the same: the plan is the `count` lowest, exactly."""
    _, sites, budget = network(4, 6)
    alphas = [[0.5, -3.0, 4.0, 1.5], [-1.0, 3.0, -2.0, 0.2, 5.0, 2.5]]
    set_(budget, *alphas)
    units = [(a, i, u) for i, row in enumerate(alphas) for u, a in enumerate(row)]
    expected = [[], []]
    for _, i, u in sorted(units)[:count]:
        expected[i].append(u)
    left = {i: (1, len(row) - len(gone)) for i, (row, gone) in enumerate(
        zip(alphas, expected, strict=True))}  # fmt: skip
    whole = {0: (1, 4), 1: (1, 6)}
    target = max(sparsity(whole, left)["params"] - 1e-9, 0)
    plan = select(budget, {"params": target})
    assert closed(plan, sites) == [sorted(gone) for gone in expected]
    if count:  # a little more, or less, and it is another number of units
        less = select(budget, {"params": target - 0.01})
        assert sum(map(len, closed(less, sites))) == count
    if 0 < count < 10:
        more = select(budget, {"params": target + 0.01})
        assert sum(map(len, closed(more, sites))) == count + 1


@pytest.mark.parametrize(("count", "units"), [(1, 6), (3, 6), (5, 6), (1000, 2000)])
def test_a_target_that_is_met_to_the_last_digit_is_met(count, units):
    """Also where one unit more would be within the tolerance."""
    _, sites, budget = network(units)
    set_(budget, torch.arange(float(units)).tolist())
    rest = opened(budget, [0.0] * count + [1.0] * (units - count))
    plan = select(budget, {"params": float(budget.sparsity(rest)["params"])})
    assert closed(plan, sites) == [list(range(count))]


def test_scores_of_another_kind_decide_where_they_are_given():
    _, sites, budget = network(3, 3)
    set_(budget, [3.0, 2.0, 1.0], [6.0, 5.0, 4.0])
    scores = [torch.tensor([0.1, 5.0, 6.0]), torch.tensor([7.0, 8.0, 0.2])]
    target = {"params": 2 * (2 * SIZE + 1) / budget.totals["params"] - 1e-9}
    assert closed(select(budget, target), sites) == [[1, 2], []]
    assert closed(select(budget, target, scores=scores), sites) == [[0], [2]]


def brute(budget: Budget, targets) -> float:
    """The least by which any choice of units is beyond all targets."""
    sizes = [len(gate.log_alpha) for gate in budget.gates.values()]
    best = float("inf")
    for choice in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        rows, begin = [], 0
        for n in sizes:
            rows.append(choice[begin : begin + n])
            begin += n
        found = budget.sparsity(opened(budget, *map(list, rows)))
        excess = min(float(found[c]) - target for c, target in targets.items())
        if excess >= 0:
            best = min(best, excess)
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_every_closed_unit_is_needed(seed, share):
    """With whole branches to close: none could open again within the targets, and with
    a wide tolerance the first plan that meets them will do."""
    _, sites, budget = network(2, 3, 1, kinds=BOTH)
    torch.manual_seed(seed)
    for gate in budget.gates.values():
        gate.log_alpha.data.normal_()
    reachable = budget.reachable()
    targets = {cost: share * reachable[cost] for cost in reachable}
    plan = select(budget, targets, tolerance=0.0)
    decide_(sites, plan)
    now = budget.opened()

    def excess(state) -> float:
        found = budget.sparsity(state)
        return min(float(found[c]) - target for c, target in targets.items())

    assert excess(now) >= brute(budget, targets) >= 0
    for row, unit in ((now == 0) & budget.all_open().bool()).nonzero().tolist():
        more = now.clone()
        more[row, unit] = 1
        assert excess(more) < 0


def test_what_would_overshoot_is_passed_over_where_smaller_units_do():
    """The first branch is least probable, but two channels are all that must go."""
    _, sites, budget = network(8, 4, kinds=BOTH)
    set_(budget, [-5.0], [5.0] * 8, [9.0], [-4.0, -3.0, -2.0, -1.0])
    target = 2 * (2 * SIZE + 1) / budget.totals["params"] - 1e-9
    plan = select(budget, {"params": target})
    assert closed(plan, sites) == [[], [0, 1]]
    assert plan["branches.0"]["modules"] == plan["branches.1"]["modules"] == [0]


def test_what_overshoots_by_less_than_the_tolerance_may_close():
    """The first branch is least probable, though one channel is all that must go."""
    _, sites, budget = network(2, 300, kinds=BOTH)
    set_(budget, [-5.0], [5.0] * 2, [9.0], torch.linspace(-4, 4, 300).tolist())
    target = {"params": (2 * SIZE + 1) / budget.totals["params"] - 1e-9}
    plan = select(budget, target, tolerance=1e-2)
    assert closed(plan, sites)[1] == []
    assert plan["branches.0"]["modules"] == []
    plan = select(budget, target, tolerance=1e-9)
    assert closed(plan, sites) == [[], [0]]


@pytest.mark.parametrize("needed", [0, 1, 2, 5])
def test_the_most_probable_open_again_first(needed):
    """Of five that are closed, as many as can; at last the least probable are left."""
    order = torch.arange(5.0)[None]
    found = _without_needless(
        torch.ones(1, 5, dtype=torch.bool),
        order,
        torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0]),
        lambda closed: float(closed.sum() - needed),
        0.0,
    )
    assert found.tolist() == [[unit < needed for unit in range(5)]]


def test_units_go_in_groups_and_what_exceeds_a_multiple_goes_first():
    _, sites, budget = network(7, 4, round_to=3)
    set_(budget, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [0.0, 9.0, 9.5, 9.9])
    unit = (2 * SIZE + 1) / budget.totals["params"]
    plans = {
        n: closed(select(budget, {"params": n * unit - 1e-9}), sites)
        for n in (1, 2, 5, 8)
    }
    # the lowest of 7 and the lowest of 4 are beyond a multiple of 3
    assert sorted(map(len, plans[1])) == [0, 1]
    assert plans[2] == [[0], [0]]
    assert plans[5] == [[0, 1, 2, 3], [0]]
    assert plans[8] == [[0, 1, 2, 3, 4, 5, 6], [0]]


def test_uniform_gates_keep_as_many_in_every_site_of_one_size():
    _, sites, budget = network(4, 4, 3, uniform=True)
    set_(budget, [0.0, 1.0, 2.0, 3.0], [0.5, 6.0, 0.1, 7.0], [2.0, 8.0, 9.0])
    unit = (2 * SIZE + 1) / budget.totals["params"]
    for n, expected in (
        (2, [[0], [2], []]),
        (4, [[0, 1], [0, 2], []]),
        (5, [[0, 1], [0, 2], [0]]),
        (7, [[0, 1, 2], [0, 1, 2], [0]]),
    ):
        plan = select(budget, {"params": n * unit - 1e-9})
        assert closed(plan, sites) == expected, n


def test_a_protected_unit_is_the_best_and_stays():
    _, sites, budget = network(3, 2, protect=True)
    set_(budget, [0.0, 5.0, 1.0], [9.0, 8.0])
    plan = select(budget, {"params": budget.reachable()["params"]})
    assert closed(plan, sites) == [[0, 2], [1]]


def test_targets_that_are_met_already_close_nothing():
    _, sites, budget = network(3, 2)
    plan = select(budget, {"params": 0.0})
    assert closed(plan, sites) == [[], []]


# Several targets


def test_the_least_that_goes_along():
    """Channels take 7 parameters and 49 MACs each; biases stay in both counts."""
    _, _, budget = network(8, 8)
    goal = 0.5
    least = _least(budget, "params", goal, "macs")
    n = 1
    while n * (2 * SIZE + 1) / budget.totals["params"] < goal:
        n += 1
    assert least == pytest.approx(n * FRAMES * (2 * SIZE + 1) / budget.totals["macs"])
    check_compatible(budget, {"params": goal, "macs": least})
    check_compatible(budget, {"params": goal, "macs": least - 0.029})
    with pytest.raises(ValueError, match=f"takes about {least:.3f} of the macs along"):
        check_compatible(budget, {"params": goal, "macs": least - 0.031})


def test_the_least_that_goes_along_is_found_in_what_takes_least():
    """MACs of one branch count double: parameters go from the other one."""
    net, sites, _ = network(6, 6)
    shapes = {}
    for i, branch in enumerate(net.branches):
        call = Call((torch.Size([1, 1, SIZE]),), torch.Size([1, 1 + i, 6]))
        shapes[branch.first] = [call]
    budget = Budget(sites, terms_of(net, sites, shapes))
    whole = budget.all_open()
    without = whole.clone()
    without[0, :] = 0  # the first branch's channels take fewer MACs
    target = float(budget.sparsity(without)["params"])
    least = _least(budget, "params", target - 1e-9, "macs")
    assert least == pytest.approx(float(budget.sparsity(without)["macs"]))


# Parts


def test_a_budget_for_each_part():
    net, sites, budget = network(4, 6, kinds=BOTH)
    parts = split(budget, net, "block")
    assert list(parts) == ["branches.0", "branches.1"]
    for i, n in enumerate((4, 6)):
        part = parts[f"branches.{i}"]
        own = costs({i: (1, n)})
        head = CLASSES * (SIZE + 1), FRAMES * CLASSES * SIZE
        assert part.totals["params"] == own["params"] - head[0]
        assert part.totals["macs"] == own["macs"] - head[1]
        assert list(part.gates.values()) == list(sites[i].gates.values())
        shares = opened(part, [0.5], [0.25] * n)
        left = 0.5 * (0.25 * n * (2 * SIZE + 1) + SIZE)
        found = float(part.sparsity(shares)["params"])
        assert found == pytest.approx(1 - left / part.totals["params"])
    (together,) = split(budget, net, "kind").values()
    assert together.totals["params"] == budget.totals["params"] - CLASSES * (SIZE + 1)
    assert len(together.gates) == 4


def test_parts_without_gates_are_no_parts():
    net, sites, _ = network(4, 6, kinds=())
    sites[1].attach_(["channels"])
    parts = split(budget_of(net, sites), net, "block")
    assert list(parts) == ["branches.1"]
    assert parts["branches.1"].sites == [sites[1]]


class Everywhere(Place):
    def part(self, per):
        return None


def test_units_that_are_of_no_one_part():
    net, sites, _ = network(4, 6)
    sites[1] = Everywhere(net, 1)
    message = r"each block cannot hold channels, which reach beyond a block .branches.1."
    with pytest.raises(ValueError, match=message):
        split(budget_of(net, sites), net, "block")
    net, sites, budget = network(4, 6, uniform=True)
    assert len(split(budget, net, "kind")) == 1
    with pytest.raises(ValueError, match="uniform: true keeps as many"):
        split(budget, net, "block")

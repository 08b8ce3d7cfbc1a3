"""Gates on a site, plans, folding and cutting, on networks that are counted by hand."""

import copy

import pytest
import torch
from torch import nn

from espnet_l0prune.core.claims import (
    Claim,
    input_claims,
    output_claims,
    whole_output_claims,
)
from espnet_l0prune.core.cutting import cut_, features_left
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.gates import AdaptiveDropout, HardConcrete
from espnet_l0prune.core.plan import Plan, plan_of, structure_of
from espnet_l0prune.core.sites import Site
from tests.core.branches import SIZE, Network, Place, network, set_

BOTH = ("modules", "channels")


class Claims(Site):
    """A site by its parts."""

    kinds = ("units",)

    def __init__(self, module: nn.Module, size: int, *claims: Claim):
        self.name, self._module, self._claims = "layer", module, claims
        self._sizes, self.kept = {"units": size}, None

    @property
    def module(self):
        return self._module

    @property
    def sizes(self):
        return self._sizes

    def claims(self):
        return iter(self._claims)

    def finish_(self, kept):
        self.kept = kept


# Gates


def test_gates_are_attached_where_they_are_asked_for():
    net = Network(4, 6)
    sites = [Place(net, 0), Place(net, 1)]
    sites[0].attach_(["channels", "heads"], 0.995, round_to=2, uniform=True)
    assert list(sites[0].gates) == ["channels"]
    assert sites[1].gates == {}
    gate = sites[0].gates["channels"]
    assert net.branches[0].channels_gate is gate
    assert type(gate) is HardConcrete
    assert gate.probability().tolist() == pytest.approx([0.995] * 4)
    assert (gate.round_to, gate.uniform) == (2, True)
    # a whole module is neither one of many nor alike others
    sites[1].attach_(BOTH, round_to=2, uniform=True, gate_type=AdaptiveDropout)
    assert list(sites[1].gates) == ["modules", "channels"]
    whole = sites[1].gates["modules"]
    assert type(whole) is AdaptiveDropout
    assert (whole.round_to, whole.uniform) == (1, False)
    assert whole.log_alpha.shape == (1,)
    assert sites[1].gates["channels"].probability().tolist() == pytest.approx([0.99] * 6)


def test_where_there_are_no_units_there_is_no_gate():
    net = Network(4)
    site = Place(net, 0)
    net.branches[0].first.out_features = 0
    site.attach_(["channels"])
    assert site.gates == {}
    bare = Claims(nn.Linear(2, 2), 2)
    bare._sizes = {}
    bare.attach_(["units"])
    assert bare.gates == {}


def test_a_gate_acts_once_on_what_it_folds_into():
    net, (site,), _ = network(4, kinds=BOTH)
    x = torch.randn(5, SIZE).double()
    branch = net.branches[0]
    set_like(site, modules=[0.5], channels=[-9.0, 0.5, -1.0, 9.0])
    z, whole = (site.gates[kind]() for kind in ("channels", "modules"))
    hidden = torch.relu(branch.first(x)) * z
    expected = (hidden @ branch.last.weight.T + branch.last.bias) * whole
    torch.testing.assert_close(branch(x), expected)
    assert len(branch.first._forward_hooks) == 0  # outputs that do not fold


def set_like(site: Site, **values: list[float]) -> None:
    for kind, value in values.items():
        gate = site.gates[kind]
        gate.log_alpha.data = torch.tensor(value).to(gate.log_alpha)


def test_what_a_site_need_not_say():
    layer = nn.Linear(2, 2)
    site = Claims(layer, 2)
    assert list(site.dependents()) == list(site.macs({})) == []
    assert site.part("block") is site.protected("units") is site.why_not("units") is None
    assert site.structure() == {"units": 2}
    assert site.structure() is not site.sizes


def test_claims_of_a_layer_and_of_a_norm():
    layer = nn.Linear(6, 4)
    weight, bias = output_claims(layer, "units", 2, 3, True)
    assert weight == Same(layer, "weight", 0, 2, 3, True)
    assert bias == Same(layer, "bias", 0, 2, 3, True)
    plain = [*output_claims(nn.Linear(6, 4, bias=False), "units")]
    assert [(c.tensor, c.inner, c.outer, c.folds, c.whole) for c in plain] == [
        ("weight", 1, 1, False, False)
    ]
    norm = [c.tensor for c in output_claims(nn.BatchNorm1d(4), "units")]
    assert norm == ["weight", "bias", "running_mean", "running_var"]
    (read,) = input_claims(layer, "units")
    assert read == Same(layer, "weight", 1, 1, 1, False)
    assert [
        (c.inner, c.outer, c.folds, c.whole) for c in whole_output_claims(layer, "all")
    ] == [(4, 1, True, True)] * 2


class Same:
    """Compares by what it says: a Claim is compared by identity."""

    def __init__(self, module, tensor, dim, inner, outer, folds):
        self.said = module, tensor, dim, "units", inner, outer, folds, False

    def __eq__(self, other):
        return self.said == (
            *(other.module, other.tensor, other.dim, other.kind),
            *(other.inner, other.outer, other.folds, other.whole),
        )


# Plans


def test_a_plan_names_what_stays_and_a_structure_how_many():
    _, sites, budget = network(4, 3)
    set_(budget, [9.0, -9.0, 0.0, -9.0], [-9.0, -9.0, -9.0])
    assert plan_of(sites) == {
        "branches.0": {"modules": [0], "channels": [0, 2]},
        "branches.1": {"modules": [0], "channels": []},
    }
    assert structure_of(sites) == {
        "branches.0": {"modules": 1, "channels": 4},
        "branches.1": {"modules": 1, "channels": 3},
    }


def test_a_protected_unit_survives_only_where_nothing_else_does():
    _, (site,), budget = network(4, protect=True)
    set_(budget, [-9.0, -3.0, -5.0, -9.0])
    assert site.survivors("channels").tolist() == [False, True, False, False]
    set_(budget, [-1.0, -3.0, 4.0, -9.0])
    assert site.survivors("channels").tolist() == [True, False, True, False]
    _, (site,), budget = network(4)
    set_(budget, [-9.0] * 4)
    assert site.survivors("channels").tolist() == [False] * 4


def test_deciding_changes_nothing_but_what_closes():
    net, sites, budget = network(4, 3, kinds=BOTH)
    set_(budget, [0.5], [0.1, -1.0, 9.0, -9.0], [-0.5], [0.3, 0.7, -9.0])
    x = torch.randn(6, SIZE).double()
    before = net(x)
    decide_(sites, plan_of(sites))
    torch.testing.assert_close(net(x), before)
    assert all(gate.is_decided() for gate in budget.gates.values())
    assert budget.opened().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 1, 0],
        [1, 0, 0, 0],
        [1, 1, 0, 0],
    ]
    decided = net(x)
    decide_(sites, plan_of(sites))  # decided as they are: nothing more to fold
    assert torch.equal(net(x), decided)


def test_a_unit_that_a_plan_closes_keeps_its_weights():
    """They are as they were, should the plan be another one."""
    net, (site,), budget = network(3)
    set_(budget, [0.1, 0.2, 0.3])
    values, before = (
        site.gates["channels"]().detach(),
        net.branches[0].last.weight.clone(),
    )
    decide_([site], Plan({"branches.0": {"channels": [0, 2]}}))
    after = net.branches[0].last.weight
    for unit in (0, 2):
        torch.testing.assert_close(after[:, unit], before[:, unit] * values[unit])
    assert torch.equal(after[:, 1], before[:, 1])


# Cutting


def test_a_cut_is_what_the_gates_left_open():
    net, sites, budget = network(4, 3, kinds=BOTH)
    set_(budget, [9.0], [9.0, -9.0, 9.0, 9.0], [9.0], [-9.0, 9.0, -9.0])
    x = torch.randn(6, SIZE).double()
    decide_(sites, plan_of(sites))
    masked, plan = net(x), plan_of(sites)
    small = copy.deepcopy(net)
    cut_(small, [Place(small, 0), Place(small, 1)], plan)
    torch.testing.assert_close(small(x), masked)
    shapes = {name: tuple(p.shape) for name, p in small.named_parameters()}
    assert shapes == {
        "branches.0.first.weight": (3, SIZE),
        "branches.0.first.bias": (3,),
        "branches.0.last.weight": (SIZE, 3),
        "branches.0.last.bias": (SIZE,),
        "branches.1.first.weight": (1, SIZE),
        "branches.1.first.bias": (1,),
        "branches.1.last.weight": (SIZE, 1),
        "branches.1.last.bias": (SIZE,),
        "head.weight": (2, SIZE),
        "head.bias": (2,),
    }
    first, last = small.branches[0].first, small.branches[0].last
    assert (first.in_features, first.out_features) == (SIZE, 3)
    assert (last.in_features, last.out_features) == (3, SIZE)


def test_what_was_not_planned_stays_as_it_is():
    net, sites, _ = network(4, kinds=())
    first = net.branches[0].first.weight
    cut_(net, sites, Plan({}))
    assert net.branches[0].first.weight is first
    net.branches[0].first.weight.requires_grad_(False)
    cut_(net, sites, Plan({"branches.0": {"channels": [1, 2]}}))
    cut = net.branches[0].first.weight
    assert isinstance(cut, nn.Parameter)
    assert not cut.requires_grad
    assert net.branches[0].last.weight.requires_grad
    assert torch.equal(cut, first[1:3])


LAYERS = {  # a layer, what its units own, what it says of itself when two of three stay
    "linear": (
        lambda: nn.Linear(6, 3),
        lambda m: [*output_claims(m, "units"), *input_claims(m, "units", inner=2)],
        {"out_features": 2, "in_features": 4},
    ),
    "convolution": (
        lambda: nn.Conv1d(6, 3, 5),
        lambda m: [*output_claims(m, "units"), *input_claims(m, "units", outer=2)],
        {"out_channels": 2, "in_channels": 4, "groups": 1, "kernel_size": (5,)},
    ),
    "depthwise": (
        lambda: nn.Conv1d(6, 6, 5, groups=6),
        lambda m: [*output_claims(m, "units", inner=2)],
        {"out_channels": 4, "in_channels": 4, "groups": 4},
    ),
    "2d": (
        lambda: nn.Conv2d(4, 3, (5, 7)),
        lambda m: [*output_claims(m, "units")],
        {"out_channels": 2, "in_channels": 4, "groups": 1},
    ),
    "norm": (
        lambda: nn.LayerNorm(3),
        lambda m: [*output_claims(m, "units")],
        {"normalized_shape": (2,)},
    ),
    "batch norm": (
        lambda: nn.BatchNorm1d(6),
        lambda m: [*output_claims(m, "units", inner=2)],
        {"num_features": 4},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_says_what_it_is_after_a_cut(name):
    make, claims, expected = LAYERS[name]
    net = nn.Sequential(make())
    site = Claims(net[0], 3, *claims(net[0]))
    whole = copy.deepcopy(net[0])
    cut_(net, [site], Plan({"layer": {"units": [0, 2]}}))
    assert {key: getattr(net[0], key) for key in expected} == expected
    for name in ("bias", "running_mean", "running_var"):
        old = getattr(whole, name, None)
        if old is not None:
            size = len(old) // 3
            rows = torch.cat([old[:size], old[2 * size :]])
            assert torch.equal(getattr(net[0], name), rows)
    assert site.kept["layer"]["units"].tolist() == [True, False, True]


def test_two_kinds_that_own_one_dimension_both_count():
    layer = nn.Linear(6, 6)
    site = Claims(
        layer, 3, *output_claims(layer, "units", inner=2), *output_claims(layer, "more")
    )
    site._sizes = {"units": 3, "more": 6}
    plan = Plan({"layer": {"units": [0, 1], "more": [1, 2, 5]}})
    kept, left = features_left([site], plan)
    assert kept["layer"]["units"].tolist() == [True, True, False]
    assert left[layer, "weight"][0].tolist() == [False, True, True, False, False, False]

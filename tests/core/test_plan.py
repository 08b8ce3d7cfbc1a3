"""Plans check themselves; freezing changes nothing until it is asked to."""

import copy
import re

import pytest
import torch

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_, freeze_, frozen, state_dict
from espnet_l0prune.core.plan import Plan, plan_of
from espnet_l0prune.core.selection import select
from tests.core.branches import SIZE, network


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ([], "a plan is []; expected a mapping from names"),
        ({3: {}}, "a plan is {3: {}}; expected a mapping from names"),
        ({"a": [1]}, "a plan for a is [1]; expected a mapping from names"),
        ({"a": {"heads": 2}}, "a plan keeps 2 of the heads of a; expected the numbers"),
        ({"a": {"heads": [True]}}, "a plan keeps [True] of the heads of a"),
        ({"a": {"heads": [1, 0]}}, "a plan keeps [1, 0] of the heads of a"),
        ({"a": {"heads": [1, 1]}}, "a plan keeps [1, 1] of the heads of a"),
        ({"a": {"heads": [-1, 1]}}, "a plan keeps [-1, 1] of the heads of a"),
    ],
)
def test_what_is_no_plan(kept, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Plan(kept)


def test_a_plan_is_as_it_was_made():
    kept = {"a": {"heads": [0, 2]}, "b": {"channels": []}}
    plan = Plan(kept)
    assert plan == kept == plan.plain()
    plan.plain()["a"]["heads"] = kept["a"]["heads"] = []
    with pytest.raises(TypeError):
        plan["a"]["heads"] = []
    assert plan["a"]["heads"] == [0, 2]
    assert plan | Plan({"c": {}}) == {"a": {"heads": [0, 2]}, "b": plan["b"], "c": {}}


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"c": {}}, "names 'c', which this network does not have; expected some of: br"),
        ({"branches.0": {"channels": [1, 4]}}, "2 channels of 'branches.0' up to number"),
        ({"branches.0": {"heads": [0]}}, "keeps 1 heads of 'branches.0' up to number 0"),
    ],
)
@pytest.mark.parametrize("use", ["freeze", "cut"])
def test_a_plan_of_another_network(kept, message, use):
    net, sites, _ = network(4, 6)
    with pytest.raises(ValueError, match=message):
        decide_(sites, Plan(kept)) if use == "freeze" else cut_(net, sites, Plan(kept))


def test_freezing_is_found_out_first_and_done_afterwards():
    """For two budgets from one network, which trains on meanwhile; to a copy, or to a
    file's state dict, it does the same."""
    net, sites, budget = network(4, 6, seed=3)
    for i, gate in enumerate(budget.gates.values()):
        gate.log_alpha.data = torch.linspace(-3 - i, 2.5, len(gate.log_alpha))
    before, x = copy.deepcopy(net.state_dict()), torch.randn(5, SIZE).double()
    plans = {target: select(budget, {"params": target}) for target in (0.2, 0.5)}
    states = {target: frozen(sites, plan) for target, plan in plans.items()}
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    copies = {}
    for target, state in states.items():
        copies[target] = copy.deepcopy(net)
        copies[target].load_state_dict(state_dict(net, state))
    freeze_(states[0.5])
    assert plan_of(sites) == plans[0.5] != plans[0.2]
    assert torch.equal(net(x), copies[0.5](x))
    assert not torch.equal(net(x), copies[0.2](x))
    decided = net.state_dict()
    assert all(torch.equal(v, decided[k]) for k, v in copies[0.5].state_dict().items())

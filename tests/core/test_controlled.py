"""The controller on a network of torch alone: what moves when, and what it says."""

import copy

import pytest
import torch

from espnet_l0prune.core.constraints import (
    ControlledL2Constraint,
    InequalityConstraint,
    LagrangianConstraint,
    PenaltyConstraint,
    ProjectedConstraint,
)
from espnet_l0prune.core.controller import SparsityController
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.parts import split
from espnet_l0prune.core.schedules import LinearSparsityScheduler
from tests.core.branches import SIZE, network

LENGTHS = {"warmup_steps": 2, "ramp_steps": 4, "hold_steps": 3}
OPTIONS = {"lr": 0.01, "gate_lr": 0.5, "weight_decay": 0.0}


def controlled(constraint=None, channels=(4, 6), parts=None, seed=0, gates=(), **more):
    """A network, its controller and its optimizer."""
    options = {k: more.pop(k) for k in ("order", "gate_lr") if k in more}
    goal = Goal(more.pop("target", 0.4))
    net, _, budget = network(*channels, seed=seed, **dict(gates))
    optimizer = L0AdamW(net.parameters(), **{**OPTIONS, **options})
    controller = SparsityController(
        budget,
        parts or {"": budget},
        goal,
        LinearSparsityScheduler(**{**LENGTHS, **more}),
        constraint or LagrangianConstraint(2.0, lambda2=30.0),
        optimizer,
    )
    return net, controller, optimizer


def update(net, controller, optimizer, times: int = 1) -> None:
    for _ in range(times):
        torch.manual_seed(controller.update)
        loss = net(torch.randn(5, SIZE).double()).square().mean()
        optimizer.zero_grad()
        (loss + controller.penalty()).backward()
        optimizer.step()


def state(net) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and log_alphas."""
    found = {"gates": [], "weights": []}
    for name, parameter in net.named_parameters():
        kind = "gates" if name.endswith("log_alpha") else "weights"
        found[kind].append(parameter.detach().flatten().clone())
    return torch.cat(found["weights"]), torch.cat(found["gates"])


def moved(net, *rest) -> tuple[bool, bool]:
    """Whether an update moves the weights, and whether the gates."""
    before = state(net)
    update(net, *rest)
    return tuple(not torch.equal(*pair) for pair in zip(before, state(net), strict=True))


@pytest.mark.parametrize(
    ("order", "gates", "weights"),
    [
        ("joint", [0, 0, 1, 1, 1, 1, 1, 1], [1] * 8),
        ("gates", [0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0, 0]),
        ("alternating", [0, 0, 0, 1, 0, 1, 0, 1], [1, 1, 1, 0, 1, 0, 1, 0]),
    ],
)
def test_what_moves_in_each_update(order, gates, weights):
    """Of nine with trained gates; the last one also fixes them."""
    run = controlled(order=order)
    found = [moved(*run) for _ in range(8)]
    assert found == [(bool(w), bool(g)) for w, g in zip(weights, gates, strict=True)]
    _, controller, _ = run
    update(*run)
    assert controller.phase == "frozen"
    assert controller.on_budget
    assert moved(*run) == (True, False)
    assert float(controller.penalty()) == 0
    assert controller.budget.actual()["params"] >= 0.4
    assert not any(gate.sampling for gate in controller.budget.gates.values())


def test_phases_penalty_and_multipliers():
    run = _, controller, _ = controlled()
    gates = list(controller.budget.gates.values())
    for i, phase in enumerate(["warmup"] * 2 + ["ramp"] * 4 + ["hold"] * 3):
        assert (controller.update, controller.phase) == (i, phase)
        assert not controller.on_budget
        trains = phase != "warmup"
        assert all(gate.sampling == trains for gate in gates)
        target = 0.4 * min(max(i - 2, 0) / 4, 1)
        assert controller.scheduler.targets(i, {"params": 0.4})[
            "params"
        ] == pytest.approx(target)
        before = dict(controller.multipliers["params"])
        shortfall = target - float(controller.budget.expected()["params"])
        penalty = before["lambda1"] * shortfall + before["lambda2"] * shortfall**2
        found = controller.penalty()
        assert found.dtype == torch.float64
        assert float(found) == pytest.approx(penalty if trains else 0)
        report = controller.report()
        assert report["sparsity_target_params"] == pytest.approx(target)
        assert report["sparsity_expected_params"] == pytest.approx(target - shortfall)
        assert report["sparsity_expected_macs"] == pytest.approx(
            float(controller.budget.expected()["macs"])
        )
        assert report["sparsity_actual_params"] == controller.budget.actual()["params"]
        assert {k: report[f"{k}_params"] for k in before} == before
        update(*run)
        after = controller.multipliers["params"]
        if not trains or i == 8:
            continue
        left = target - float(controller.budget.expected()["params"])
        assert after["lambda1"] == pytest.approx(before["lambda1"] + 2 * left)
        assert after["lambda2"] == pytest.approx(before["lambda2"] + 2 * left**2)


def test_both_costs_have_their_share_and_parts_their_own():
    target = {"params": 0.41, "macs": 0.455}  # of 5 channels of 10
    net, controller, optimizer = controlled(target=target)
    update(net, controller, optimizer, 4)
    total = 0.0
    for cost, multipliers in controller.multipliers.items():
        shortfall = target[cost] / 2 - float(controller.budget.expected()[cost])
        total += multipliers["lambda1"] * shortfall
        total += multipliers["lambda2"] * shortfall**2
    assert float(controller.penalty()) == pytest.approx(total)

    net, _, budget = network(4, 6)
    parts = split(budget, net, "block")
    optimizer = L0AdamW(net.parameters(), **OPTIONS)
    controller = SparsityController(
        budget,
        parts,
        Goal(0.4),
        LinearSparsityScheduler(**LENGTHS),
        LagrangianConstraint(2.0, lambda2=30.0),
        optimizer,
    )
    names = {f"params_branches.{i}" for i in (0, 1)}
    assert set(controller.multipliers) == names
    update(net, controller, optimizer, 9)
    for name, part in parts.items():
        assert part.actual()["params"] >= 0.4
        report = controller.report()
        assert report[f"sparsity_expected_params_{name}"] == pytest.approx(
            part.actual()["params"]
        )
        assert f"lambda1_params_{name}" in report


def test_a_resumed_run_is_where_it_was():
    run = net, controller, optimizer = controlled()
    update(*run, 4)
    weights, saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    other = net, controller, optimizer = controlled(seed=1)
    assert controller.phase == "warmup"
    net.load_state_dict(weights)
    optimizer.load_state_dict(saved)
    assert (controller.update, controller.phase) == (4, "ramp")
    assert all(gate.sampling for gate in controller.budget.gates.values())
    assert controller.multipliers == run[1].multipliers
    update(*run, 6)
    update(*other, 6)
    for one, two in zip(state(run[0]), state(other[0]), strict=True):
        assert torch.equal(one, two)


def test_a_resumed_frozen_run_stays_frozen_as_it_is():
    run = net, controller, optimizer = controlled()
    update(*run, 10)
    closed = controller.budget.opened()
    other, again, reader = controlled(seed=1)
    other.load_state_dict(net.state_dict())
    reader.load_state_dict(optimizer.state_dict())
    assert again.phase == "frozen"
    assert torch.equal(again.budget.opened(), closed)
    assert moved(other, again, reader) == (True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 0.3}, r"target was {'params': 0.4}, is {'params': 0.3}"),
        ({"hold_steps": 4}, "hold_steps was 3, is 4"),
        ({"gate_lr": 0.25}, "gate_lr was 0.5, is 0.25"),
        ({"order": "gates"}, "order was joint, is gates"),
        ({"channels": (4, 7)}, "scope, seconds, tokens"),
        ({"gates": {"round_to": 2}.items()}, "round_to and uniform was"),
        (
            {"constraint": LagrangianConstraint(1.0, lambda2=30.0)},
            "sparsity_constraint_conf was",
        ),
        ({"constraint": InequalityConstraint()}, "sparsity_constraint was Lagrangian"),
    ],
)
def test_other_settings_are_refused(changes, message):
    _, begun, first = controlled()
    _, controller, _ = controlled(**changes)
    with pytest.raises(ValueError, match=message):
        controller.check_settings(begun.settings)
    begun.check_settings(begun.settings)
    _, _, other = controlled(target=0.3)  # and so does a resume
    with pytest.raises(ValueError, match="begun with other settings: target was"):
        other.load_state_dict(first.state_dict())


def test_targets_that_cannot_be_met_are_refused_at_once():
    with pytest.raises(ValueError, match="reach at most"):
        controlled(target=0.999)
    with pytest.raises(ValueError, match="the gates' expected sparsity at the start is"):
        controlled(target=0.001)
    both = {"params": 0.7, "macs": 0.1}
    with pytest.raises(ValueError, match="contradict each other"):
        controlled(target=both)
    controlled(InequalityConstraint(), target=both)  # asks for at least so much
    with pytest.raises(ValueError, match="holds all gates to one target"):
        controlled(ControlledL2Constraint(), target={"params": 0.4, "macs": 0.4})
    with pytest.raises(
        ValueError, match=r"start is 0\.5; expected at most the target, 0\.4"
    ):
        controlled(start=0.5)
    controlled(start=0.4)
    controlled(ControlledL2Constraint())
    assert controlled(PenaltyConstraint())[1].multipliers == {"params": {}}


# Epochs


def test_the_last_epoch_in_which_a_frozen_network_still_trains():
    """The gates freeze after 9 updates: the tenth is the first of the frozen network."""
    _, controller, _ = controlled()
    controller.begin_epoch(10, 1)
    controller.begin_epoch(5, 2)
    with pytest.raises(
        ValueError, match=r"after 9 updates .* after 9: 1 epochs of 9. Raise .* to 2, or"
    ):
        controller.begin_epoch(9, 1)
    with pytest.raises(ValueError, match=r"max_epoch to 4, or .* to 6 updates in all"):
        controller.begin_epoch(3, 3)
    controller.begin_epoch(3, 4)


def test_what_was_trained_counts_for_the_rest():
    run = _, controller, _ = controlled()
    update(*run, 4)
    controller.begin_epoch(3, 4, 2)  # ends after 4 + 6
    with pytest.raises(ValueError, match=r"ends after 7: 3 epochs of 3. Raise .* to 4"):
        controller.begin_epoch(3, 3, 2)
    controller.begin_epoch(None, 5, 2)  # about 2 updates in each: 10
    with pytest.raises(ValueError, match=r"ends after 8: 4 epochs of 2"):
        controller.begin_epoch(None, 4, 2)
    update(*run, 1)
    controller.begin_epoch(None, 4, 2)  # 5 in two: 3, rounded up; 5 + 6


def test_an_epoch_of_no_updates():
    _, controller, _ = controlled()
    with pytest.raises(ValueError, match="fewer batches than accum_grad"):
        controller.begin_epoch(0, 4)
    controller.begin_epoch(None, 1)  # its length is not known yet


def test_a_schedule_in_epochs_scales_with_their_length():
    lengths = {"warmup_steps": 0.5, "ramp_steps": 1, "hold_steps": 0.5}
    run = _, controller, optimizer = controlled(in_epochs=True, **lengths)
    with pytest.raises(ValueError, match="epochs of unknown length"):
        controller.begin_epoch(None, 3)
    controller.begin_epoch(4, 3)
    scheduler = controller.scheduler
    begins = scheduler.ramp_begins, scheduler.hold_begins, scheduler.frozen_begins
    assert begins == (2, 6, 8)
    assert optimizer.progress.scale == scheduler.scale == 4
    controller.begin_epoch(6, 3)  # before the first update it may change
    assert scheduler.frozen_begins == 12
    controller.begin_epoch(4, 3)
    update(*run, 4)
    controller.begin_epoch(4, 3, 1)
    with pytest.raises(ValueError, match="an epoch has 5 updates, but had 4"):
        controller.begin_epoch(5, 3, 1)
    with pytest.raises(ValueError, match=r"max_epoch to 3, or .* to 1 epochs in all"):
        controlled(in_epochs=True, **lengths)[1].begin_epoch(4, 2)


def test_gates_that_moved_before_the_first_update():
    run = _, controller, _ = controlled()
    gate = next(iter(controller.budget.gates.values()))
    gate.log_alpha.data[0] += 0.1
    with pytest.raises(ValueError, match="the gates come from another run"):
        controller.begin_epoch(100, 1)
    update(*run)  # later they may be anywhere
    controller.begin_epoch(100, 1)


# What is told


def told(caplog) -> str:
    text = caplog.text
    caplog.clear()
    return text


def test_a_target_that_is_not_followed_is_told_once(caplog):
    run = _, controller, _ = controlled(LagrangianConstraint(1e-6, lambda2=1e-6))
    update(*run, 5)
    controller.begin_epoch(None, 1)
    assert "sparsity" not in told(caplog)  # it may come yet
    update(*run, 2)  # hold
    controller.tell_remedies()
    assert "sparsity in params is 0.3" in (text := told(caplog))
    assert "from its target, which no longer rises. Raise multiplier_lr" in text
    controller.tell_remedies()
    assert not told(caplog)


def test_a_price_has_no_target_to_follow(caplog):
    run = controlled(PenaltyConstraint(0.1))
    update(*run, 7)
    told(caplog)
    run[1].tell_remedies()
    assert not told(caplog)


def test_each_phase_is_announced_once(caplog):
    caplog.set_level("INFO")
    run = controlled()
    update(*run, 12)
    text = told(caplog)
    for phase, at in {"warmup": 0, "ramp": 2, "hold": 6, "frozen": 9}.items():
        assert text.count(f"enters phase '{phase}' at update {at}: ") == 1
    assert text.count("enters phase") == 4


def test_multipliers_that_are_no_numbers_end_the_run():
    run = controlled()
    run[1].multipliers["params"]["lambda1"] = float("inf")
    with pytest.raises(ValueError, match=r"the multipliers of params are .*nan"):
        update(*run, 9)


def test_gates_that_are_undecided_are_told_before_and_when_they_are_fixed(caplog):
    run = _, controller, _ = controlled(gate_lr=0.02)
    update(*run, 5)
    controller.begin_epoch(None, 9)
    assert "undecided" not in told(caplog)  # the ramp goes on
    update(*run, 2)
    for gate in controller.budget.gates.values():
        gate.log_alpha.data.fill_(-gate.shift)
    controller.begin_epoch(None, 9)
    assert "100.0% of the gates are undecided: they are open with" in told(caplog)
    update(*run, 2)
    assert controller.phase == "frozen"
    assert "Raise hold_steps, or take sparsity_constraint: projected" in told(caplog)
    update(*run, 2)
    assert not told(caplog)
    run = _, controller, _ = controlled(ProjectedConstraint(), ramp_steps=1, hold_steps=0)
    update(*run, 9)
    assert controller.phase == "frozen"
    assert "To fix them changes the network. Raise hold_steps.\n" in told(caplog)

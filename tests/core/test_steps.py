"""One step of each constraint, of the optimizer and of each schedule, by hand."""

import inspect

import pytest
import torch
from torch import nn

from espnet_l0prune.core.constraints import (
    ControlledL2Constraint,
    InequalityConstraint,
    LagrangianConstraint,
    NuPIConstraint,
    PenaltyConstraint,
)
from espnet_l0prune.core.gates import HardConcrete, LogAlpha
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.schedules import (
    ConstantSparsityScheduler,
    CosineSparsityScheduler,
    ExponentialSparsityScheduler,
    LinearSparsityScheduler,
    StaircaseSparsityScheduler,
)
from espnet_l0prune.core.selection import select

ALPHA = torch.tensor([1.0, -2.0, 4.0])
STEPS = {  # a constraint, its multipliers, a shortfall; the penalty, what they are then
    "lagrangian": (
        LagrangianConstraint(0.5),
        {"lambda1": 3.0, "lambda2": 4.0},
        0.5,
        3 * 0.5 + 4 * 0.25,
        {"lambda1": 3.25, "lambda2": 4.125},
    ),
    "lagrangian, beyond": (
        LagrangianConstraint(0.5),
        {"lambda1": 3.0, "lambda2": 4.0},
        -0.5,
        -3 * 0.5 + 4 * 0.25,
        {"lambda1": 2.75, "lambda2": 4.125},
    ),
    "inequality": (InequalityConstraint(2.0), {"lambda": 3.0}, 0.5, 1.5, {"lambda": 4.0}),
    "inequality, met": (
        InequalityConstraint(2.0),
        {"lambda": 3.0},
        -0.5,
        -1.5,
        {"lambda": 0.0},
    ),
    "inequality, just met": (
        InequalityConstraint(2.0),
        {"lambda": 3.0},
        0.0,
        0.0,
        {"lambda": 0.0},
    ),
    "inequality without restart": (
        InequalityConstraint(2.0, restart=False),
        {"lambda": 3.0},
        -0.5,
        -1.5,
        {"lambda": 2.0},
    ),
    "inequality without restart, at 0": (
        InequalityConstraint(2.0, restart=False),
        {"lambda": 0.5},
        -0.5,
        -0.25,
        {"lambda": 0.0},
    ),
    "nupi": (
        NuPIConstraint(0.5, kp=6.0, ki=3.0, nu=0.75),
        {"lambda": 2.0, "xi": 0.1},
        0.5,
        1.0,
        # xi moves a quarter of the way to 0.5, by 0.1
        {"lambda": 2.0 + 0.5 * (3 * 0.5 + 6 * 0.1), "xi": 0.2},
    ),
    "penalty": (PenaltyConstraint(4.0), {}, 0.5, 2.0, {}),
    "controlled_l2": (
        ControlledL2Constraint(0.5, weight=2.0),
        {"centre": 3.0},
        0.5,
        2 * (4 + 25 + 1),
        {"centre": 2.75},
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step(name):
    constraint, multipliers, shortfall, penalty, after = STEPS[name]
    found = constraint.penalty(torch.tensor(shortfall), multipliers, ALPHA)
    assert float(found) == pytest.approx(penalty)
    constraint.update_(shortfall, multipliers)
    assert multipliers == pytest.approx(after)


def test_where_multipliers_start_and_what_they_hold():
    assert LagrangianConstraint().start() == {"lambda1": 0, "lambda2": 1000}
    assert LagrangianConstraint(lambda1=2).start() == {"lambda1": 2, "lambda2": 1000}
    assert InequalityConstraint().start() == {"lambda": 0}
    assert NuPIConstraint().start() == {"lambda": 0, "xi": 0}
    assert PenaltyConstraint().start() == {}
    assert ControlledL2Constraint().start() == {"centre": 4.6}
    for constraint in (InequalityConstraint(), PenaltyConstraint()):
        assert not constraint.equality
    for constraint in (LagrangianConstraint(), NuPIConstraint()):
        assert constraint.equality
        assert not constraint.one_cost
    assert ControlledL2Constraint().one_cost


def defaults(kind) -> dict:
    """Of a class's options, which users rely on."""
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def test_defaults_that_experiments_rely_on():
    schedule = {
        "start": 0.0,
        "warmup_steps": 1000,
        "ramp_steps": 10000,
        "hold_steps": 10000,
        "in_epochs": False,
        "gate_start": None,
        "milestones": None,
    }
    assert defaults(LinearSparsityScheduler) == schedule
    stairs = defaults(StaircaseSparsityScheduler)
    assert stairs.pop("stairs") == 5
    assert stairs == schedule
    assert defaults(LagrangianConstraint)["multiplier_lr"] == 0.5
    assert defaults(InequalityConstraint) == {"multiplier_lr": 50.0, "restart": True}
    assert defaults(NuPIConstraint) == {
        "multiplier_lr": 5.0,
        "kp": 200.0,
        "ki": 1.0,
        "nu": 0.0,
    }
    assert defaults(PenaltyConstraint) == {"weight": 1.0}
    assert defaults(ControlledL2Constraint) == {
        "multiplier_lr": 0.3,
        "centre": 4.6,
        "weight": 0.01,
    }
    assert defaults(L0AdamW) == {
        "lr": 1e-3,
        "gate_lr": 0.02,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-2,
        "order": "joint",
    }
    assert defaults(select) == {"tolerance": 1e-3, "scores": None, "equality": False}
    assert defaults(HardConcrete) == {
        "open_probability": 0.99,
        "round_to": 1,
        "uniform": False,
    }


@pytest.mark.parametrize("name", ["multiplier_lr", "ki"])
def test_gains_of_nothing_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} is 0; expected a number in \(0,"):
        NuPIConstraint(**{name: 0})
    NuPIConstraint(kp=0.0, nu=0.0)
    for make in (InequalityConstraint, ControlledL2Constraint):
        with pytest.raises(ValueError, match="multiplier_lr is 0; expected a"):
            make(0)


# Schedules


def test_a_ramp_that_starts_above_0():
    lengths = {"warmup_steps": 1, "ramp_steps": 4, "hold_steps": 1}
    for kind, at in (
        (LinearSparsityScheduler, [0.2, 0.35, 0.5, 0.65]),
        (ConstantSparsityScheduler, [0.8] * 4),
        (CosineSparsityScheduler, [0.2, 0.5 - 0.15 * 2**0.5, 0.5, 0.5 + 0.15 * 2**0.5]),
        (ExponentialSparsityScheduler, [1 - 0.8 * 0.25 ** (i / 4) for i in range(4)]),
    ):
        scheduler = kind(0.2, **lengths)
        found = [scheduler.targets(i, {"params": 0.8})["params"] for i in range(7)]
        assert found == pytest.approx([0, *at, 0.8, 0.8])
    lengths["ramp_steps"] = 8
    stairs = StaircaseSparsityScheduler(0.0, **lengths, stairs=4)
    found = [stairs.targets(i, {"params": 0.8})["params"] for i in range(1, 10)]
    assert found == pytest.approx([0.2] * 2 + [0.4] * 2 + [0.6] * 2 + [0.8] * 3)


def test_lengths_that_are_allowed():
    one = LinearSparsityScheduler(0.3, 0, 5, 5)
    one.check_final({"params": 0.3})  # a start of the target
    assert one.targets(0, {"params": 0.3}) == {"params": 0.3}
    LinearSparsityScheduler(0.0, 0, 5, 0)
    LinearSparsityScheduler(0.0, 3.0, 0, 5)
    in_epochs = LinearSparsityScheduler(0.0, 0.5, 1.5, 1.26, in_epochs=True)
    assert in_epochs.scale == 1
    in_epochs.scale = 10
    begins = in_epochs.ramp_begins, in_epochs.hold_begins, in_epochs.frozen_begins
    assert begins == (5, 20, 33)
    with pytest.raises(ValueError, match="hold_steps is -1"):
        LinearSparsityScheduler(0.0, 0, 5, -1, in_epochs=True)
    with pytest.raises(ValueError, match=r"stairs is 2\.5"):
        StaircaseSparsityScheduler(stairs=2.5)
    StaircaseSparsityScheduler(stairs=1)


# The optimizer


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("gates", [True, False])
def test_what_is_left_out_of_a_move(weights, gates):
    weight, gate = nn.Parameter(torch.ones(2)), LogAlpha(torch.ones(3))
    optimizer = L0AdamW([weight, gate], weight_decay=0.5)
    of_weights, of_gates = optimizer.param_groups
    assert (of_gates["params"], of_gates["weight_decay"]) == ([gate], 0)
    weight.grad, gate.grad = torch.ones(2), torch.ones(3)
    with torch.no_grad():
        optimizer.move_(weights, gates)
    assert bool((weight != 1).all()) == weights
    assert bool((gate != 1).all()) == gates
    assert of_weights["lr"] == of_gates["lr"] == 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate_lr": 0}, r"gate_lr is 0; expected a number in \(0, 10\]"),
        ({"order": "both"}, "order is 'both'; expected one of joint, alternating, gates"),
    ],
)
def test_options_of_no_optimizer(options, message):
    with pytest.raises(ValueError, match=message):
        L0AdamW([nn.Parameter(torch.ones(2))], **options)


def test_groups_of_one_kind_alone():
    weight, gate = nn.Parameter(torch.ones(2)), LogAlpha(torch.ones(3))
    optimizer = L0AdamW([weight], betas=[0.8, 0.9])
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": gate})  # a tensor as it is
    assert [g["params"] for g in optimizer.param_groups] == [[weight], [gate]]
    other = nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": other, "lr": 0.5})
    assert optimizer.param_groups[2]["lr"] == 0.5

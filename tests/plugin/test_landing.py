"""A run lands on its targets, whatever its loss, its precision and its batches are."""

import contextlib

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.testing.updates import batch, train
from tests.plugin.test_heads import configuration

NORMALIZED = {"model_conf": {"ctc_weight": 0.3, "length_normalized_loss": True}}
RUNS = {  # the head, other options, batches of an update, and whether in bfloat16
    "hybrid": ("hybrid", {}, 1, False),
    "ctc": ("ctc", {}, 1, False),
    "attention": ("attention", {}, 1, False),
    "transducer": ("transducer", {}, 1, False),
    "normalized": ("hybrid", NORMALIZED, 1, False),
    "accumulated": ("hybrid", {}, 3, False),
    "autocast": ("hybrid", {}, 1, True),
}


@pytest.mark.parametrize("name", RUNS)
def test_it_follows_its_targets_and_lands_decided(name):
    head, options, accumulated, half = RUNS[name]
    goal = {"params": 0.4, "macs": 0.45}
    args = configuration(
        head,
        sparsity_goal_conf={"target": goal, "seconds": 0.8, "tokens": 6},
        sparsity_scheduler="linear",
        sparsity_scheduler_conf={"warmup_steps": 2, "ramp_steps": 15, "hold_steps": 6},
        sparsity_constraint="projected",
    )
    args.model_conf |= options.get("model_conf", {})
    torch.manual_seed(0)
    net = ASRTask.build_model(args).train()
    (optimizer,) = ASRTask.build_optimizers(args, net)
    controller, undecided = net.controller, 1.0
    new = controller.budget.new()
    place = torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext()
    while controller.phase != "frozen":
        for i in range(accumulated):
            with place:
                loss, _, _ = net(**batch(i))
            (loss / accumulated).backward()
        report = controller.report()
        if controller.phase in ("ramp", "hold"):
            for cost in goal:
                asked = max(report[f"sparsity_target_{cost}"], new[cost])
                found = report[f"sparsity_expected_{cost}"]
                assert found == pytest.approx(asked, abs=0.01), controller.update
            undecided = report["gates_undecided"]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
    assert controller.update == 23
    assert undecided <= 0.05
    for cost, actual in controller.budget.actual().items():
        assert 0 <= actual - goal[cost] <= 0.02  # a head of this network is as large


def test_only_an_equality_avoids_what_is_beyond_a_target():
    """FFN channels, which cost parameters more than MACs, are to close first."""
    goal, beyond = {"params": 0.3, "macs": 0.4}, {}
    for constraint in ("lagrangian", "inequality"):
        args = configuration(
            "hybrid",
            sparsity_goal_conf={"target": goal, "seconds": 0.8, "tokens": 6},
            sparsity_scheduler="linear",
            sparsity_scheduler_conf={"ramp_steps": 1, "hold_steps": 1, "warmup_steps": 0},
            sparsity_constraint=constraint,
            optim_conf={"gate_lr": 1e-6},
        )
        args.encoder_conf["units"] = ["ffn_channels", "frontend_channels"]
        torch.manual_seed(0)
        net = ASRTask.build_model(args)
        (optimizer,) = ASRTask.build_optimizers(args, net)
        budget = net.controller.budget
        for (_, kind), gate in budget.gates.items():
            place = -3.0 if kind == "ffn_channels" else 3.0
            gate.log_alpha.data.copy_(place + torch.linspace(-1, 1, len(gate.log_alpha)))
        train(net, optimizer, range(2))
        assert net.controller.on_budget
        beyond[constraint] = max(budget.actual()[cost] - goal[cost] for cost in goal)
    assert beyond["lagrangian"] < beyond["inequality"] - 0.05

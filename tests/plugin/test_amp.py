"""Mixed precision, as ESPnet's `use_amp` trains; on the CPU, where torch has it too."""

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import arguments
from espnet_l0prune.testing.updates import batch

PRUNING = {
    "sparsity_scheduler": "linear",
    "sparsity_scheduler_conf": {
        "target": 0.3,
        "seconds": 0.8,
        "warmup_steps": 0,
        "ramp_steps": 10,
        "hold_steps": 5,
    },
    "encoder_conf": {"units": "all"},
}


@pytest.fixture
def student(tmp_path):
    """A gated model with its teacher in phase `ramp`, and what trains it."""
    save_experiment(tmp_path)
    files = {
        "teacher_config": str(tmp_path / "config.yaml"),
        "teacher_model_file": str(tmp_path / "model.pth"),
    }
    args = arguments(**PRUNING, model_conf=files)
    args.output_dir = None
    torch.manual_seed(0)
    net = ASRTask.build_model(args).train()
    (optimizer,) = ASRTask.build_optimizers(args, net)
    return net, optimizer


def test_gates_penalty_and_budget_are_as_precise_under_autocast(student):
    net, _ = student
    torch.manual_seed(1)
    loss, stats, _ = net(**batch())
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half_loss, half, _ = net(**batch())
        gates = [gate() for gate in net.controller.budget.gates.values()]
    assert {gate.dtype for gate in gates} == {torch.float32}
    assert half_loss.dtype == torch.float32
    for name, value in stats.items():
        if name.startswith(("sparsity", "lambda", "loss_sparsity")):
            assert half[name] == value, name
    # what layers compute has bfloat16's 8 bits, and nothing is beyond that
    torch.testing.assert_close(half_loss, loss, rtol=0.05, atol=0)


def test_what_the_scaler_leaves_out_is_no_update(student):
    net, optimizer = student
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    first = net.controller.multipliers["params"].copy()

    def step(factor: float) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss, _, _ = net(**batch())
        scaler.scale(factor * loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    before = [p.detach().clone() for p in net.parameters()]
    step(float("inf"))
    assert net.controller.update == 0
    assert net.controller.multipliers["params"] == first
    assert all(map(torch.equal, before, net.parameters()))
    assert scaler.get_scale() == 512
    step(1.0)
    assert net.controller.update == 1
    assert net.controller.multipliers["params"] != first

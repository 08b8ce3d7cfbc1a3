"""A learning rate that falls to 0 at the end of a run."""

import shutil

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.plugin.decay import LinearDecayLR, fit_decays_
from espnet_l0prune.plugin.trainer import PREVIOUS
from espnet_l0prune.report.history import read_history
from espnet_l0prune.testing.models import arguments
from espnet_l0prune.testing.runs import CONFIG, final, make_data, run

LR = CONFIG["optim_conf"]["lr"]
DECAY = {"scheduler": "l0_lineardecaylr", "scheduler_conf": {"warmup_ratio": 0}}
FINE_TUNING = {
    "encoder_conf": {**CONFIG["encoder_conf"], "units": []},
    "optim": "adamw",
    "optim_conf": {"lr": LR},
    "sparsity_scheduler": None,
    "sparsity_constraint": None,
    "max_epoch": 4,
}
EPOCH = 3  # updates: 12 utterances in batches of 4


def rates(total: int, **options) -> list[float]:
    """The rate of every update of a run, and of one more."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = LinearDecayLR(optimizer, **options)
    scheduler.fit_(total)
    found = []
    for _ in range(total + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_it_rises_and_falls_to_zero_at_the_end():
    assert rates(4, warmup_ratio=0) == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
    assert rates(8, warmup_ratio=3 / 8) == pytest.approx(
        [0.5, 1.0, 1.5, 2.0, 1.6, 1.2, 0.8, 0.4, 0.0]
    )
    found = rates(1000)
    assert max(found) == found[100] == pytest.approx(2.0)
    assert found[0] == pytest.approx(2.0 / 101)
    assert rates(1, warmup_ratio=0) == [2.0, 0.0]
    assert all(rates(n, warmup_ratio=r)[0] > 0 for n in (1, 2) for r in (0.1, 0.99))


def test_a_trainer_that_says_nothing_makes_no_update():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = LinearDecayLR(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0
    optimizer.step()
    with pytest.raises(ValueError, match="needs the length of the run"):
        scheduler.step()


def test_a_run_that_grows_or_that_skips_an_update_still_ends_at_zero():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = LinearDecayLR(optimizer, warmup_ratio=0.2)
    for epoch in range(3):
        fit_decays_([None, scheduler], 5, 3 - epoch)
        for _ in range(5 - (epoch == 0)):
            optimizer.step()
            scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0


def test_what_it_refuses():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(ValueError, match="scheduler_conf: warmup_ratio is 1; expected"):
        LinearDecayLR(optimizer, warmup_ratio=1)
    with pytest.raises(ValueError, match="epochs of unknown length; expected another"):
        fit_decays_([LinearDecayLR(optimizer)], None, 3)
    args = arguments(optim="adamw", optim_conf={}, scheduler="l0_lineardecaylr")
    args.optim_conf, args.scheduler_conf = {"lr": LR}, {"model_size": 256}
    with pytest.raises(ValueError, match="scheduler_conf: unknown option 'model_size'"):
        ASRTask.build_optimizers(args, ASRTask.build_model(args))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.mark.parametrize("accum_grad", [1, 3])
def test_a_fine_tuning_ends_at_zero(accum_grad, data, tmp_path):
    run(data, tmp_path / "exp", **FINE_TUNING, **DECAY, accum_grad=accum_grad)
    state = final(tmp_path / "exp")
    assert state["optimizers"][0]["param_groups"][0]["lr"] == 0
    assert state["schedulers"][0]["last_epoch"] == 4 * EPOCH // accum_grad
    epochs, _ = read_history(tmp_path / "exp")
    means = [epoch.train["optim0_lr0"] for epoch in epochs]
    assert means == sorted(means, reverse=True)


def test_a_resumed_run_is_the_one_that_never_stopped(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(data, whole, **FINE_TUNING, **DECAY)
    shutil.copytree(whole, parts)
    (parts / PREVIOUS).replace(parts / "checkpoint.pth")  # of the third epoch
    (parts / "4epoch.pth").unlink()
    assert final(parts)["reporter"]["epoch"] == 3
    run(data, parts, **FINE_TUNING, **DECAY)
    one, two = final(whole), final(parts)
    assert two["schedulers"] == one["schedulers"]
    assert all(torch.equal(w, one["model"][n]) for n, w in two["model"].items())


def test_pruning_leaves_the_gates_rate_alone(data, tmp_path):
    run(data, tmp_path / "exp", **DECAY)
    groups = final(tmp_path / "exp")["optimizers"][0]["param_groups"]
    assert all(group["lr"] == 0 for group in groups)
    assert {group["gate_lr"] for group in groups if "gate_lr" in group} == {0.3}

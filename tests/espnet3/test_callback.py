"""ESPnet3 prunes by one callback, as ESPnet2 does by its trainer."""

import logging
import subprocess
import sys

import pytest
import torch
import yaml

pytest.importorskip("lightning", reason="ESPnet3 is not here: ESPnet before 202609")
pytest.importorskip("espnet3.components.data.base_dataset")

from lightning.pytorch.callbacks import Callback

from espnet_l0prune.core.optim import progress_in
from espnet_l0prune.deploy.cut import cut_experiment
from espnet_l0prune.plugin.experiment import load_experiment
from espnet_l0prune.report.headline import standing
from espnet_l0prune.report.page import write_report
from espnet_l0prune.report.run import read_run
from espnet_l0prune.testing import runs as espnet2
from tests.espnet3.runs import CALLBACK, EPOCH, MODEL, OPTIM, last, make_noise, run

BEST = {"best_model_criterion": [["valid/loss", 1, "min"]]}
CRITERION = [["valid", "loss_on_budget", "min"]]
DECAY = "espnet_l0prune.plugin.callback.l0_lineardecaylr"
STOP = "tests.espnet3.test_callback.Stop"


class Stop(Callback):
    """It stands for a kill: nothing is written after it."""

    def __init__(self, epoch: int, batch: int):
        self.at = epoch, batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            raise KeyboardInterrupt


def with_trainer(**options) -> dict:
    return {"trainer": options}


def with_model(**options) -> dict:
    return {"model": options}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    make_noise(folder)
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A pruning that never stopped."""
    out = tmp_path_factory.mktemp("exp") / "whole"
    run(data, out)
    return out


def weights(out) -> dict[str, torch.Tensor]:
    return last(out)["state_dict"]


def progress(out):
    return progress_in(last(out)["optimizer_states"][0])


def epochs(out) -> list[dict]:
    return last(out)["callbacks"]["L0Callback"]["epochs"]


def test_it_lands_and_is_cut(whole, tmp_path):
    assert progress(whole).update == 6 * EPOCH
    report = cut_experiment(whole, tmp_path / "cut")
    assert report.sparsity["params"] == pytest.approx(0.4, abs=0.05)
    (best,) = whole.glob("*_valid.loss_on_budget.ckpt")
    assert "epoch4" in best.name or "epoch5" in best.name  # frozen from update 13 on
    small, _ = load_experiment(tmp_path / "cut", "model.pth")
    assert sum(p.numel() for p in small.parameters()) == report.model_parameters[1]


def test_the_configuration_says_how_the_network_was_pruned(whole):
    conf = yaml.safe_load((whole / "config.yaml").read_text("utf-8"))
    assert conf["sparsity_constraint"] == "projected"
    assert conf["sparsity_goal_conf"]["target"] == {"params": 0.4}


# in ramp, hold and frozen; in the middle of an epoch and at its end
@pytest.mark.parametrize("stop", [(1, 1), (2, EPOCH - 1), (4, 0), (5, 1)])
def test_a_resumed_run_is_the_one_that_never_stopped(stop, whole, data, tmp_path):
    out = tmp_path / "parts"
    callbacks = [CALLBACK, {"_target_": STOP, "epoch": stop[0], "batch": stop[1]}]
    with pytest.raises(SystemExit):  # what Lightning makes of an interrupt
        run(data, out, with_trainer(callbacks=callbacks))
    assert progress(out).update < progress(whole).update
    run(data, out, {"fit": {"ckpt_path": str(out / "last.ckpt")}})
    assert progress(out) == progress(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(out)[name]), name
    for one, other in zip(epochs(out), epochs(whole), strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_gates_start_from_what_the_warm_up_measures(data, tmp_path):
    """In a run that is stopped within the warm-up, and at its end, as in one that never
    stopped."""
    lengths = {"warmup_steps": 7 * EPOCH, "ramp_steps": 3, "hold_steps": 2}
    conf = with_model(sparsity_scheduler_conf={**lengths, "gate_start": "taylor"})
    nine, out = with_trainer(max_epochs=9), tmp_path / "parts"
    run(data, tmp_path / "whole", conf, nine)
    resume = {"fit": {"ckpt_path": str(out / "last.ckpt")}}
    for (epoch, batch), more, begun in (((3, 1), {}, False), ((7, 0), resume, True)):
        stop = {"_target_": STOP, "epoch": epoch, "batch": batch}
        callbacks = with_trainer(callbacks=[CALLBACK, stop], max_epochs=9)
        with pytest.raises(SystemExit):
            run(data, out, conf, callbacks, more)
        starts = torch.cat([w for name, w in weights(out).items() if "log_alpha" in name])
        assert (len(starts.unique()) > 1) == begun
    run(data, out, conf, nine, resume)
    assert progress(out) == progress(tmp_path / "whole")
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(out)[name]), name


def test_a_checkpoint_of_the_middle_of_an_epoch(data, tmp_path):
    """Lightning would go on without the seed and the schedule of the epoch."""
    keep = {
        "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
        **{"dirpath": str(tmp_path / "exp"), "filename": "middle"},
        **{"every_n_train_steps": EPOCH + 1, "save_top_k": -1},
    }
    stop = {"_target_": STOP, "epoch": 1, "batch": 1}
    with pytest.raises(SystemExit):
        run(data, tmp_path / "exp", with_trainer(callbacks=[CALLBACK, keep, stop]))
    middle = str(tmp_path / "exp/middle.ckpt")
    before = (tmp_path / "exp/config.yaml").read_text("utf-8")
    with pytest.raises(ValueError, match=r"middle\.ckpt, of the middle of an epoch"):
        run(data, tmp_path / "exp", {"fit": {"ckpt_path": middle}})
    assert (tmp_path / "exp/config.yaml").read_text("utf-8") == before


def test_validations_after_every_second_epoch(data, tmp_path):
    """Figures of an earlier one are not those of an epoch without."""
    run(data, tmp_path / "exp", with_trainer(check_val_every_n_epoch=2))
    noted = [epoch["valid"] for epoch in epochs(tmp_path / "exp")]
    assert [("loss" in figures) for figures in noted] == [False, True] * 3
    assert all("sparsity_actual_params" in figures for figures in noted)


def test_a_report_shows_it(whole, tmp_path):
    shown = read_run(whole, "whole")
    assert shown.problems == []
    assert [epoch.update for epoch in shown.history] == [EPOCH * n for n in range(1, 7)]
    assert "6 of 6" not in standing(shown)
    assert "removed 4" in standing(shown)
    last_epoch = shown.history[-1]
    assert last_epoch.valid["sparsity_target_params"] == pytest.approx(0.4)
    assert last_epoch.train["loss_task"] > 0 < last_epoch.seconds
    assert "optimizer" in shown.config
    assert "optim" not in shown.config
    report = write_report([whole], tmp_path / "report")
    assert report.missing == []
    assert {"losses", "sparsity"} <= {p.name.split("_")[0] for p in report.pictures}


def test_the_same_run_in_espnet2(data, tmp_path):
    """Initial weights, batches and draws are the same, and so is the result. (Where
    gradients are clipped, the two sum up their norm in another order.)"""
    whole = tmp_path / "whole"
    run(data, whole, with_trainer(gradient_clip_val=1e9))
    conf = {
        **{"input_size": None, "seed": 0, "grad_clip": 1e9, **MODEL},
        **{"optim_conf": OPTIM, "sparsity_constraint": None},
        **{"sparsity_constraint_conf": {}, "best_model_criterion": CRITERION},
        **{"scheduler": "warmuplr", "scheduler_conf": {"warmup_steps": 15000}},
    }
    espnet2.run(data, tmp_path / "exp", **conf)
    state = espnet2.final(tmp_path / "exp")
    assert progress(whole).multipliers == progress_in(state["optimizers"][0]).multipliers
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, state["model"][name]), name


def test_a_batch_that_is_skipped_makes_no_update(data, tmp_path):
    args = {"folder": str(data), "broken": 5}
    source = {"data_src": "tests.espnet3.noise", "data_src_args": args}
    conf = {"use_cnn_module": False}  # a batch norm would keep the NaN
    lengths = {"warmup_steps": 2, "ramp_steps": 4, "hold_steps": 3}
    change = with_model(encoder_conf=conf, sparsity_scheduler_conf=lengths)
    run(data, tmp_path / "exp", {"dataset": {"train": [source]}}, change)
    made = progress(tmp_path / "exp").update
    assert made == 6 * (EPOCH - 1) == epochs(tmp_path / "exp")[-1]["update"]
    assert all(t.isfinite().all() for t in weights(tmp_path / "exp").values())


def test_what_is_accumulated_is_one_update(data, tmp_path):
    """The last one of an epoch has fewer batches."""
    run(data, tmp_path / "exp", with_trainer(accumulate_grad_batches=2, max_epochs=8))
    assert progress(tmp_path / "exp").update == 8 * 2
    cut_experiment(tmp_path / "exp", tmp_path / "cut")


def test_milestones_are_refused(data, tmp_path):
    lengths = {"warmup_steps": 2, "ramp_steps": 4, "hold_steps": 3}
    change = with_model(sparsity_scheduler_conf={**lengths, "milestones": [0.2, 0.4]})
    with pytest.raises(ValueError, match=r"milestones is \[0\.2, 0\.4\]; expected mil"):
        run(data, tmp_path / "exp", change)


def test_an_earlier_run_is_not_overwritten(whole, data):
    before = {path.name for path in whole.iterdir()}
    config = (whole / "config.yaml").read_text("utf-8")
    with pytest.raises(ValueError, match=r"which has last\.ckpt of an earlier run"):
        run(data, whole, with_model(sparsity_goal_conf={"target": {"params": 0.6}}))
    assert {path.name for path in whole.iterdir()} == before
    assert (whole / "config.yaml").read_text("utf-8") == config


def test_a_refused_resume_leaves_the_configuration(whole, data):
    before = (whole / "config.yaml").read_text("utf-8")
    change = with_model(sparsity_goal_conf={"target": {"params": 0.6}})
    resume = {"fit": {"ckpt_path": str(whole / "last.ckpt")}}
    with pytest.raises(ValueError, match="begun with other settings: target was"):
        run(data, whole, change, resume)
    assert (whole / "config.yaml").read_text("utf-8") == before


def test_a_cut_network_may_train_without_a_teacher(whole, data, tmp_path):
    cut_experiment(whole, tmp_path / "cut")
    structure = str(tmp_path / "cut/structure.yaml")
    change = with_model(
        encoder_conf={"units": [], "structure": structure},
        **{"model": "espnet", "sparsity_scheduler": None},
        init_param=[str(tmp_path / "cut/model.pth")],
    )
    optimizer = {"_target_": "torch.optim.AdamW", "lr": 1e-3}
    noam = {"_target_": DECAY, "model_size": 99}  # an option of the dense scheduler
    out = tmp_path / "exp"
    run(data, out, change, {"optimizer": optimizer, "scheduler": noam}, BEST)
    assert last(out)["optimizer_states"][0]["param_groups"][0]["lr"] == 0
    small, _ = load_experiment(out, "last.ckpt")
    assert len(small.state_dict()) == len(weights(out))


def test_mixed_precision(data, tmp_path):
    run(data, tmp_path / "exp", with_trainer(precision="bf16-mixed"))
    cut_experiment(tmp_path / "exp", tmp_path / "cut")


def test_phases_in_epochs_are_fitted_to_the_run(data, tmp_path, caplog):
    lengths = {"warmup_steps": 1, "ramp_steps": 2, "hold_steps": 1, "in_epochs": True}
    with caplog.at_level(logging.INFO):
        run(data, tmp_path / "exp", with_model(sparsity_scheduler_conf=lengths))
    for phase, update in (("ramp", EPOCH), ("hold", 3 * EPOCH), ("frozen", 4 * EPOCH)):
        assert f"phase '{phase}' at update {update}:" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_trainer(callbacks=[]), "callbacks has nothing that trains gates"),
        ({"optimizer": {"_target_": "torch.optim.Adam"}}, "_target_ is torch.optim.adam"),
        (with_trainer(precision="bf16-true"), "precision is bf16-true; expected"),
        (with_trainer(max_epochs=-1, max_steps=9), "max_epochs is -1; expected"),
        (with_trainer(max_steps=9), "max_steps is 9; expected"),
        (
            with_trainer(
                callbacks=[
                    CALLBACK,
                    {
                        "_target_": "lightning.pytorch.callbacks.EarlyStopping",
                        "monitor": "valid/loss",
                    },
                ]
            ),
            "callbacks is EarlyStopping; expected",
        ),
        (
            {"best_model_criterion": [["valid/loss", 1, "min"]]},
            r"best_model_criterion is \['valid/loss', 1, 'min'\]; expected",
        ),
        (
            {"best_model_criterion": [["valid/loss_on_budget", 3, "min"]]},
            "an average of epochs fits no gates",
        ),
        (
            with_trainer(
                callbacks=[
                    CALLBACK,
                    {"_target_": "lightning.pytorch.callbacks.StochasticWeightAveraging"}
                    | {"swa_lrs": 0.001},
                ]
            ),
            "no average fits the gates",
        ),
        (
            with_model(model_conf={"ctc_weight": 0.3, "layer_projection": "teacher"}),
            "layer_projection is teacher; expected",
        ),
        (
            {"scheduler": {"_target_": DECAY}, "scheduler_interval": "epoch"},
            "scheduler_interval is epoch; expected",
        ),
        (with_model(model="espnet", model_conf={"ctc_weight": 0.3}), "model is espnet"),
        (with_model(sparsity_scheduler=None), "sparsity_scheduler is None"),
        (
            with_model(sparsity_goal_conf={"target": {"params": 0.99}}),
            "target",
        ),
    ],
)
def test_it_refuses_before_the_first_update(change, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path / "exp", change)
    assert not [*tmp_path.glob("exp/*.ckpt")]


def test_two_processes_train_alike(data, tmp_path):
    """Each has a batch of its own, and both move the gates alike."""
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "-W", "ignore", "-m", "tests.espnet3.distributed"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    cut_experiment(tmp_path / "exp", tmp_path / "cut")

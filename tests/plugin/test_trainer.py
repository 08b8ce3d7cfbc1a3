"""Runs of ESPnet's own training command: interrupted, damaged, resumed."""

import multiprocessing
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from espnet2.main_funcs.average_nbest_models import average_nbest_models
from espnet2.tasks.asr import ASRTask
from espnet2.train import trainer as espnet_trainer
from espnet2.train.reporter import Reporter

from espnet_l0prune.cli import main
from espnet_l0prune.core.files import is_whole
from espnet_l0prune.plugin.resume import EARLIER
from espnet_l0prune.plugin.trainer import PREVIOUS, keep_checkpoint
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.runs import CONFIG, UTTERANCES, final, make_data, run
from tests.plugin.distributed import DECODER, EPOCHS, PLAIN, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


class Killed(BaseException):
    """As by a signal: nothing in ESPnet or here catches it."""


def run_killed(data, out, name: str, times: int = 1, **changes) -> None:
    """Until a file is saved for the nth time: half of it, and then nothing more."""
    save, left = torch.save, [times]

    def half(state, path, *args, **kwargs):
        save(state, path, *args, **kwargs)
        left[0] -= path.name == name
        if not left[0]:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(espnet_trainer.torch, "save", half)
        with pytest.raises(Killed):
            run(data, out, **changes)


def assert_same(one, two) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            if key not in ("time", "total_count"):
                assert_same(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "exp"
    run(data, out)
    return out


@pytest.fixture(scope="module")
def uninterrupted(finished):
    return final(finished)


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """A run of which the fifth epoch of six was the last."""
    out = tmp_path_factory.mktemp("stopped") / "exp"
    run(data, out, max_epoch=5)
    return out


def copied(run, folder) -> Path:
    """A run that may be changed."""
    return shutil.copytree(run, folder / "exp", symlinks=True)


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("epoch", [1, 3, 5])
@pytest.mark.parametrize("name", ["checkpoint.pth", "{}epoch.pth"])
def test_killed_while_saving(name, epoch, data, uninterrupted, tmp_path):
    out, name = tmp_path / "exp", name.format(epoch)
    run_killed(data, out, name, times=epoch if name == "checkpoint.pth" else 1)
    assert not is_whole(out / name)
    run(data, out)
    found = final(out)
    assert_same(found["model"], uninterrupted["model"])
    assert_same(found["optimizers"], uninterrupted["optimizers"])
    for e in (5, 6):  # the best and the last that ESPnet keeps
        path = out / f"{e}epoch.pth"
        assert is_whole(path) or not path.exists()
    assert is_whole(out / "latest.pth")


def test_no_whole_checkpoint_is_left(data, stopped, tmp_path):
    """Finished epochs are not trained again without a word."""
    out = copied(stopped, tmp_path)
    for path in (out / "checkpoint.pth", out / PREVIOUS):
        path.write_bytes(path.read_bytes()[:1000])
    config = (out / "config.yaml").read_text()
    with pytest.raises(RuntimeError, match=r"is damaged and there is no whole"):
        run(data, out, max_epoch=7)
    assert (out / "config.yaml").read_text() == config


def test_a_new_run_does_not_keep_the_checkpoint_of_another(stopped, tmp_path):
    """Or a kill in its first epoch would have the other's be resumed."""
    out = copied(stopped, tmp_path)
    keep_checkpoint(out, epochs=0)
    assert not (out / PREVIOUS).exists()
    keep_checkpoint(out, epochs=5)
    assert is_whole(out / PREVIOUS)


def test_a_flipped_bit_is_a_damaged_checkpoint(data, finished, tmp_path, caplog):
    out = copied(finished, tmp_path)
    path = out / "checkpoint.pth"
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda i: i.file_size)
        place = largest.header_offset + largest.file_size // 2 + 200
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert not is_whole(path)
    run(data, out)
    assert f"resuming from {out / PREVIOUS}, one epoch earlier" in caplog.text
    assert_same(final(out)["model"], final(finished)["model"])


def test_damage_anywhere_is_no_error(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "good.pth")
    good, path = (tmp_path / "good.pth").read_bytes(), tmp_path / "bad.pth"
    assert is_whole(tmp_path / "good.pth")
    rng, found = np.random.default_rng(0), set()
    for _ in range(2000):
        bad = bytearray(good)
        for place in rng.integers(len(good), size=3):
            bad[place] = rng.integers(256)
        path.write_bytes(bad)
        found.add(is_whole(path))
    assert False in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity_constraint": "inequality"}, "was NuPIConstraint, is Inequality"),
        (
            {"encoder_conf": {**CONFIG["encoder_conf"], "gate": "adaptive_dropout"}},
            "gates was .'HardConcrete'., is .'AdaptiveDropout'.",
        ),
        ({"sparsity_scheduler": "linear"}, "was CubicSparsityScheduler, is Linear"),
        ({"optim_conf": {"lr": 1e-3, "gate_lr": 0.2}}, "gate_lr was 0.3, is 0.2"),
        (
            {
                "sparsity_scheduler_conf": {
                    **CONFIG["sparsity_scheduler_conf"],
                    "scope": "model",
                }
            },
            "scope, seconds, tokens. was",
        ),
        (
            {"sparsity_scheduler_conf": {"target": 0.3, "hold_steps": 5}},
            "warmup_steps was 2, is 1000; ramp_steps was 6, is 10000; hold_steps was 4",
        ),
    ],
)
def test_a_resume_with_other_settings(changes, message, data, stopped):
    before = contents(stopped)
    conf = {"sparsity_constraint_conf": {}, **changes}
    with pytest.raises(ValueError, match=message):
        run(data, stopped, **conf)
    assert contents(stopped) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 5}, "batch_size was 4, is 5"),  # 3 updates, too
        ({"accum_grad": 2}, "accum_grad was 1, is 2"),
        ({"grad_clip": 1.0}, "grad_clip was 5.0, is 1.0"),
        *(
            ({where: {**CONFIG[where], name: value}}, f"{where}: {name} was {was}, is ")
            for where, name, was, value in (
                ("optim_conf", "lr", "0.001", 0.01),
                ("optim_conf", "weight_decay", "None", 0.1),
                ("model_conf", "ctc_weight", "0.3", 0.4),
                ("model_conf", "layer_weight", "None", 0.5),
                ("model_conf", "temperature", "None", 2.0),
                ("encoder_conf", "open_probability", "None", 0.995),
                ("encoder_conf", "dropout_rate", "None", 0.2),
            )
        ),
        ({"scheduler": "steplr", "scheduler_conf": {"step_size": 1}}, "scheduler was N"),
    ],
)
def test_what_a_resume_may_not_change(changes, message, data, stopped):
    """Each would make the rest of the run another one, and nothing else tells."""
    before = contents(stopped)
    with pytest.raises(ValueError, match=message):
        run(data, stopped, **changes)
    assert contents(stopped) == before


def test_what_a_resume_may_change_is_told_once(data, stopped, tmp_path, caplog):
    out = copied(stopped, tmp_path)
    changes = {"max_epoch": 6, "log_interval": 2, "keep_nbest_models": 2}
    run(data, out, **changes)
    (said,) = (r.message for r in caplog.records if "other options" in r.message)
    assert "max_epoch was 5, is 6" in said
    assert "log_interval was None, is 2" in said
    assert final(out)["reporter"]["epoch"] == 6
    assert not (out / EARLIER).exists()
    caplog.clear()
    run(data, out, **changes)
    assert "other options" not in caplog.text


def test_fine_tuning_is_resumed_with_its_options_too(data, tmp_path):
    conf = {
        "encoder_conf": {**CONFIG["encoder_conf"], "units": []},
        "optim": "adamw",
        "optim_conf": {"lr": 1e-3},
        "sparsity_scheduler": None,
        "sparsity_constraint": None,
        "max_epoch": 1,
    }
    run(data, tmp_path / "exp", **conf)
    with pytest.raises(ValueError, match=r"optim_conf: lr was 0.001, is 0.002"):
        run(data, tmp_path / "exp", **{**conf, "optim_conf": {"lr": 2e-3}})


def test_a_run_that_is_refused_as_its_epoch_begins_leaves_no_trace(data, tmp_path):
    """As there are other data than before, or fewer epochs than the schedule needs."""
    out, data = tmp_path / "exp", shutil.copytree(data, tmp_path / "data")
    lengths = {"warmup_steps": 1, "ramp_steps": 2, "hold_steps": 1, "in_epochs": True}
    conf = {"sparsity_scheduler_conf": {"target": 0.3, **lengths}}
    run_killed(data, out, "3epoch.pth", **conf)
    config = (out / "config.yaml").read_text()
    with pytest.raises(ValueError, match=r"freeze after 12 updates .* ends after 12"):
        run(data, out, max_epoch=4, **conf)
    assert (out / "config.yaml").read_text() == config
    shapes = (data / "shape").read_text().splitlines()
    (data / "shape").write_text("\n".join(shapes[:8]) + "\n")
    with pytest.raises(ValueError, match="an epoch has 2 updates, but had 3 when"):
        run(data, out, **conf)
    assert (out / "config.yaml").read_text() == config
    assert not (out / EARLIER).exists()


def test_a_finished_run_is_not_resumed_with_fewer_epochs(data, stopped):
    """Nothing is trained, so config.yaml still says what was."""
    before = (stopped / "config.yaml").read_text()
    run(data, stopped, max_epoch=4)
    assert (stopped / "config.yaml").read_text() == before
    assert not (stopped / EARLIER).exists()


def test_a_damaged_configuration_is_not_compared(data, stopped, tmp_path, caplog):
    """As after a kill while ESPnet wrote it."""
    out = copied(stopped, tmp_path)
    (out / "config.yaml").write_text("seed: [")
    run(data, out)
    assert "without a comparison of options" in caplog.text
    assert final(out)["reporter"]["epoch"] == 6


def test_a_resume_with_another_architecture(data, stopped, tmp_path):
    out = copied(stopped, tmp_path)
    wider = {**CONFIG["encoder_conf"], "linear_units": 20}
    message = (
        r"checkpoint.pth is of another architecture: encoder.encoders.0.feed_forward"
        r".w_1.weight has shape \(12, 16\) there, \(20, 16\) in this model"
    )
    with pytest.raises(ValueError, match=message):
        run(data, out, encoder_conf=wider)
    deeper = {**CONFIG["encoder_conf"], "num_blocks": 3}
    with pytest.raises(ValueError, match=r"encoders.2.\S+ has shape none there"):
        run(data, out, encoder_conf=deeper)
    whole = (out / "checkpoint.pth").read_bytes()
    (out / "checkpoint.pth").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match=r"previous\.pth is of another arch"):
        run(data, out, encoder_conf=deeper)
    (out / "checkpoint.pth").write_bytes(whole)
    run(data, out)
    assert final(out)["reporter"]["epoch"] == 6


def rates(out) -> list[float]:
    stats = final(out)["reporter"]["stats"]
    return [stats[epoch]["train"]["optim0_lr0"] for epoch in sorted(stats)]


PLATEAU = {"patience": 0, "factor": 0.5}


@pytest.mark.parametrize(
    ("name", "conf"),
    [
        ("reducelronplateau", PLATEAU),
        ("warmupreducelronplateau", {**PLATEAU, "warmup_steps": 1}),
    ],
)
def test_the_rate_waits_for_no_figure_before_the_gates_are_frozen(
    name, conf, data, tmp_path
):
    """Of a figure that rises with the target, and then stands: epoch 4 is the first that
    ends with frozen gates, 5 is no better, so that 6 has half the rate."""
    conf = {
        "scheduler": name,
        "scheduler_conf": conf,
        "val_scheduler_criterion": ["valid", "sparsity_target_params"],
    }
    run(data, tmp_path / "whole", **conf)
    assert rates(tmp_path / "whole") == [1e-3] * 5 + [5e-4]
    for epoch in (2, 5):
        run_killed(data, tmp_path / "exp", f"{epoch}epoch.pth", **conf)
    run(data, tmp_path / "exp", **conf)
    assert rates(tmp_path / "exp") == rates(tmp_path / "whole")
    for part in ("model", "optimizers", "schedulers"):
        assert_same(final(tmp_path / "exp")[part], final(tmp_path / "whole")[part])


def test_statistics_are_collected_without_pruning(data, tmp_path):
    """`--collect_stats` builds the model with our options, and trains nothing."""
    out = tmp_path / "stats"
    run(data, out, "--collect_stats", "true")
    assert len((out / "train/speech_shape").read_text().splitlines()) == UTTERANCES
    assert (out / "train/feats_stats.npz").exists()
    assert not list(out.glob("*.pth"))


def test_a_schedule_longer_than_the_run(data, tmp_path):
    conf = {**CONFIG["sparsity_scheduler_conf"], "ramp_steps": 20}
    message = (
        r"freeze after 26 updates .* ends after 18: 6 epochs of 3. Raise max_epoch to "
        r"9, or shorten .* to 15 updates in all"
    )
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path / "exp", sparsity_scheduler_conf=conf)


def test_an_epoch_without_an_update(data, tmp_path):
    with pytest.raises(ValueError, match="fewer batches than accum_grad"):
        run(data, tmp_path / "exp", accum_grad=4)


def test_a_schedule_in_epochs(data, uninterrupted, tmp_path):
    """The same phases, so the same run."""
    lengths = {"warmup_steps": 2 / 3, "ramp_steps": 2, "hold_steps": 4 / 3}
    conf = {"target": 0.3, "in_epochs": True, **lengths}
    run_killed(data, tmp_path / "exp", "3epoch.pth", sparsity_scheduler_conf=conf)
    run(data, tmp_path / "exp", sparsity_scheduler_conf=conf)
    found = final(tmp_path / "exp")
    assert_same(found["model"], uninterrupted["model"])
    assert found["optimizers"][0]["param_groups"][1]["scale"] == 3


def test_a_stock_model_is_trained_after_a_pruned_one(data, uninterrupted, tmp_path):
    stock = {
        "encoder": "conformer",
        "model": "espnet",
        "optim": "adam",
        "optim_conf": {"lr": 1e-3},
        "sparsity_scheduler": None,
        "sparsity_constraint": None,
    }
    assert ASRTask.trainer is espnet_trainer.Trainer  # ours was of the pruned run alone
    run(data, tmp_path / "exp", max_epoch=2, **stock)
    assert final(tmp_path / "exp")["reporter"]["epoch"] == 2
    assert not (tmp_path / "exp" / PREVIOUS).exists()


def phases(out) -> dict[str, float]:
    """What the last checkpoint says of the pruning."""
    group = final(out)["optimizers"][0]["param_groups"][1]
    return {"update": group["update"], **group["multipliers"]["params"]}


def test_updates_are_counted_not_batches(data, tmp_path):
    """accum_grad makes of three batches one update."""
    lengths = {"warmup_steps": 0, "ramp_steps": 2, "hold_steps": 2}
    conf = {"target": 0.3, **lengths}
    run(data, tmp_path / "exp", accum_grad=3, sparsity_scheduler_conf=conf)
    assert phases(tmp_path / "exp")["update"] == CONFIG["max_epoch"]


def test_a_resume_between_accumulated_batches(data, tmp_path):
    """Of three batches, two make an update; the third one's gradient is in none."""
    lengths = {"warmup_steps": 1, "ramp_steps": 1, "hold_steps": 1}
    conf = {"accum_grad": 2, "sparsity_scheduler_conf": {"target": 0.3, **lengths}}
    run(data, tmp_path / "whole", **conf)
    for epoch in (2, 4):
        run_killed(data, tmp_path / "exp", f"{epoch}epoch.pth", **conf)
    run(data, tmp_path / "exp", **conf)
    found, expected = final(tmp_path / "exp"), final(tmp_path / "whole")
    for name in ("model", "optimizers"):
        assert_same(found[name], expected[name])


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing(norm, data, tmp_path):
    """Gates, multipliers and schedule are skipped with the weights."""
    clip, made = torch.nn.utils.clip_grad_norm_, []

    def clip_or_fail(parameters, *args, **kwargs):
        made.append(clip(parameters, *args, **kwargs))
        return made[-1] * norm if len(made) > 12 else made[-1]

    run_killed(data, tmp_path / "exp", "4epoch.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", clip_or_fail)
        made.extend([0] * 12)
        run(data, tmp_path / "exp")  # stops after an epoch without an update
    before = torch.load(tmp_path / "exp" / PREVIOUS, weights_only=False)
    after = final(tmp_path / "exp")
    assert after["reporter"]["epoch"] == 5
    assert before["reporter"]["epoch"] == 4
    parameters = dict(
        ASRTask.build_model_from_file(tmp_path / "exp/config.yaml")[0].named_parameters()
    )
    for name in parameters:
        assert torch.equal(before["model"][name], after["model"][name]), name
    assert_same(before["optimizers"], after["optimizers"])


def test_clipping_leaves_the_multipliers_alone(data, tmp_path):
    """Their path depends on the gates' costs alone, which start alike."""
    found = []
    for clip in (1e-3, 1e3):
        out = tmp_path / f"{clip}"
        frozen_gates = {"gate_lr": 1e-12, "lr": 1e-3, "weight_decay": clip}
        run(data, out, grad_clip=clip, optim_conf=frozen_gates)
        found.append(phases(out))
    assert found[0] == found[1]
    assert found[0]["lambda"] > 0


def test_averaged_checkpoints_are_cut_only_once_all_are_frozen(data, tmp_path, capsys):
    out = tmp_path / "exp"
    run(data, out, keep_nbest_models=6, max_epoch=6)
    assert (out / "valid.acc.ave_6best.pth").exists()
    command = ["cut", str(out), "--out", str(tmp_path / "cut")]
    assert main([*command, "--checkpoint", "valid.acc.ave_6best.pth"]) == 1
    assert "are not frozen yet" in capsys.readouterr().err

    frozen = {epoch: out / f"{epoch}epoch.pth" for epoch in (4, 5, 6)}
    states = [torch.load(path, weights_only=True) for path in frozen.values()]
    alphas = [key for key in states[0] if key.endswith("log_alpha")]
    assert alphas
    for key in alphas:  # decided in the last update of epoch 4, and never moved
        assert all(torch.equal(states[0][key], state[key]) for state in states)
    reporter = Reporter()
    reporter.load_state_dict(final(out)["reporter"])
    for stale in out.glob("*ave*"):
        stale.unlink()
    for epoch in (1, 2, 3):
        reporter.stats.pop(epoch)
    average_nbest_models(out, reporter, [("valid", "acc", "max")], [3])
    averaged = torch.load(out / "valid.acc.ave_3best.pth", weights_only=True)
    for key in alphas:
        assert torch.equal(averaged[key], states[0][key])
    assert main([*command, "--checkpoint", "valid.acc.ave_3best.pth"]) == 0


OPTIONS = {
    "init_param and freeze_param": lambda out: {
        "init_param": [f"{out}/latest.pth:decoder:decoder"],
        "freeze_param": ["decoder.decoders"],
    },
    "tensorboard": lambda out: {"use_tensorboard": True},
    "averaging": lambda out: {"nbest_averaging_interval": 2},
    "iterations": lambda out: {"num_iters_per_epoch": 4},
    "unused parameters": lambda out: {"unused_parameters": True},
    "wandb": lambda out: {"use_wandb": True, "wandb_project": "none"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_espnets_options(name, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    conf = OPTIONS[name](tmp_path / "first")
    if "init_param" in conf:
        run(data, tmp_path / "first")
    out = tmp_path / "exp"
    run(data, out, **conf)
    per_epoch = conf.get("num_iters_per_epoch", 3)
    assert phases(out)["update"] == per_epoch * CONFIG["max_epoch"]
    assert main(["cut", str(out), "--out", str(tmp_path / "cut")]) == 0
    if "freeze_param" in conf:
        one, two = (final(tmp_path / e)["model"] for e in ("first", "exp"))
        assert not torch.equal(one["ctc.ctc_lo.weight"], two["ctc.ctc_lo.weight"])
    if "use_tensorboard" in conf:
        assert list((out / "tensorboard").rglob("events*"))
    if "use_wandb" in conf:
        (log,) = out.rglob("*.wandb")
        assert b"sparsity_expected_params" in log.read_bytes()


def test_gates_that_cannot_train_are_refused(data, tmp_path):
    gates = "holds the gates of embed.conv.0; expected units without frontend_channels"
    with pytest.raises(ValueError, match=gates):
        run(data, tmp_path / "exp", freeze_param=["encoder.embed"])


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Over gloo, with all that is random or depends on the batch left out.

    Utterances are of one length: ESPnet's subsampling counts frames by the longest.
    """
    make_data(tmp_path, 64, 64)
    save_experiment(tmp_path / "dense", encoder_conf=PLAIN, decoder_conf=DECODER)
    context = multiprocessing.get_context("forkserver")  # this process has threads
    context.set_forkserver_preload([train.__module__])
    ranks = [
        context.Process(target=train, args=(tmp_path, rank)) for rank in (0, 1, None)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0, 0]
    first, second, alone = (
        torch.load(tmp_path / f"{rank}.pth", weights_only=False) for rank in (0, 1, None)
    )
    assert len(first) == 3 * EPOCHS
    alike, begun = (torch.cat(first[i]["log_alpha"]).unique() for i in (18, 19))
    assert len(alike) == 1 < len(begun)  # both processes have measured the same
    written = [
        tmp_path / name / "milestone_0.15/model.pth" for name in ("alone", "together")
    ]
    milestones = [torch.load(path, weights_only=True) for path in written]
    for one, two in zip(*(state.values() for state in milestones), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)
    assert_same(first, second)
    for one, two in zip(first, alone, strict=True):
        assert one["update"] == two["update"]
        assert one["layer_weight"] == pytest.approx(two["layer_weight"])
        assert one["layer_weight"]["size"] > 0
        for cost, multipliers in one["multipliers"].items():
            assert multipliers == pytest.approx(two["multipliers"][cost], rel=1e-4)
        for a, b in zip(one["log_alpha"], two["log_alpha"], strict=True):
            # in float32, and moved apart twice
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

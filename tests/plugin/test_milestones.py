"""One run, many networks: each milestone is written, and the run does not notice."""

import json
import re

import pytest
import torch
import yaml

from espnet_l0prune.cli import main
from espnet_l0prune.core import files
from espnet_l0prune.core.files import is_whole
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.plugin import trainer
from espnet_l0prune.plugin.experiment import load_experiment
from espnet_l0prune.plugin.milestones import BATCHES, check_batches, fixed_state
from espnet_l0prune.testing.runs import CONFIG, final, make_data, run
from espnet_l0prune.testing.updates import batch, train
from tests.plugin.test_trainer import Killed, assert_same, run_killed
from tests.plugin.test_training import start

# Three updates an epoch; the holds end after updates 8 and 14, within epochs 3 and 5
LENGTHS = {"warmup_steps": 2, "ramp_steps": 10, "hold_steps": 4}
PRUNING = {
    "sparsity_goal_conf": {"target": 0.5},
    "sparsity_scheduler": "linear",
    "sparsity_scheduler_conf": {**LENGTHS, "milestones": [0.2, 0.35, 0.5]},
    "sparsity_constraint": "projected",
    "sparsity_constraint_conf": {},
    "max_epoch": 9,
}
SHARES = 0.2, 0.35
NAMES = "config.yaml", "model.pth"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "exp"
    run(data, out, **PRUNING)
    return out


def written(out) -> dict:
    """All that the milestones of a run are."""
    found = {}
    for folder in sorted(out.glob("*milestone*")):
        assert sorted(file.name for file in folder.iterdir()) == [*NAMES], folder
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config.pop("output_dir"), config.pop("config")
        weights = torch.load(folder / "model.pth", weights_only=True)
        found[folder.name] = config, weights
    return found


def assert_as_uninterrupted(out, finished) -> None:
    for part in ("model", "optimizers", "schedulers"):
        assert_same(final(out)[part], final(finished)[part])
    assert [*written(out)] == ["milestone_0.2", "milestone_0.35"]
    assert_same(written(out), written(finished))


def test_a_run_does_not_notice_that_milestones_are_written(data, finished, tmp_path):
    """In its weights, gates, batch norms, optimizer and figures, and in what is random:
    SpecAugment, dropout and the gates' noise."""
    random = {
        "specaug": "specaug",
        "specaug_conf": {
            "time_mask_width_range": [0, 8],
            "freq_mask_width_range": [0, 4],
        },
        "encoder_conf": {**CONFIG["encoder_conf"], "dropout_rate": 0.2},
    }
    run(data, tmp_path / "with", **PRUNING, **random)
    assert len(written(tmp_path / "with")) == 2
    with pytest.MonkeyPatch.context() as patch:
        # the hold ends as ever, and nobody is told
        patch.setattr(
            trainer, "writing_milestones", lambda *_: trainer.contextlib.ExitStack()
        )
        run(data, tmp_path / "without", **PRUNING, **random)
    assert not written(tmp_path / "without")
    one, two = (final(tmp_path / name) for name in ("with", "without"))
    for part in ("model", "optimizers", "schedulers"):
        assert_same(one[part], two[part])
    timed = re.compile("time|memory|cached")
    for epoch, stats in one["reporter"]["stats"].items():
        for key, figures in stats.items():
            other = two["reporter"]["stats"][epoch][key]
            assert figures.keys() == other.keys()
            for name, value in figures.items():
                if not timed.search(name):
                    assert value == other[name] or value != value, (epoch, key, name)


# When a run is killed, by the file that is half written then
KILLED = [
    "0.2 config.yaml",  # within epoch 3
    "0.2 model.pth",
    "3epoch.pth",  # after the milestone, before the epoch was whole
    "checkpoint.pth 4",
    "0.35 model.pth",
    "5epoch.pth",
    "checkpoint.pth 5",
]


@pytest.mark.parametrize("moment", KILLED)
def test_killed_at_any_moment_and_resumed(moment, data, finished, tmp_path):
    out = tmp_path / "exp"
    first, _, second = moment.partition(" ")
    if second in NAMES:
        replace = files.os.replace

        def until(old, new):
            """The last file is whole, and nothing takes its place any more."""
            if (new.parent.name, new.name) == (f"milestone_{first}", second):
                raise Killed
            replace(old, new)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.os, "replace", until)
            with pytest.raises(Killed):
                run(data, out, **PRUNING)
        assert not (out / f"milestone_{first}/{second}").exists()
    else:
        run_killed(data, out, first, times=int(second or 1), **PRUNING)
    run(data, out, **PRUNING)
    assert_as_uninterrupted(out, finished)


@pytest.mark.parametrize("name", NAMES)
def test_killed_in_the_middle_of_a_file(name, data, finished, tmp_path):
    """As by a signal, after which nothing is tidied up."""
    out = tmp_path / "exp"
    run(data, out, **{**PRUNING, "max_epoch": 9})
    for path in (out / "milestone_0.35").iterdir():
        path.rename(path.with_name(f"{path.name}.part"))
    part = out / f"milestone_0.35/{name}.part"
    part.write_bytes(part.read_bytes()[:100])
    for path in out.glob("*epoch.pth"):
        path.unlink()
    for path in (out / "checkpoint.pth", out / "checkpoint.previous.pth"):
        path.unlink()
    run(data, out, **PRUNING)  # from the start
    assert_as_uninterrupted(out, finished)


@pytest.mark.parametrize("share", [*SHARES, None])
def test_each_is_cut_as_a_finished_pruning(share, finished, tmp_path, capsys):
    gated = finished if share is None else finished / f"milestone_{share}"
    out, target = tmp_path / "cut", share or 0.5
    assert main(["cut", str(gated), "--out", str(out)]) == 0
    report = json.loads((out / "cut.json").read_text())
    assert report["target"] == {"params": target}
    assert 0 <= report["sparsity"]["params"] - target <= 0.03  # a head is as large
    assert report["difference"]["float64"] <= 1e-10
    assert main(["verify", str(gated), str(out)]) == 0
    small, _ = load_experiment(out, "model.pth")
    before, after = report["encoder_parameters"]
    assert sum(p.numel() for p in small.encoder.parameters()) == after < before
    # what is fine-tuned next takes it
    assert main(["inspect", str(gated)]) == 0
    assert "frozen" not in capsys.readouterr().err


def test_a_milestone_is_what_the_run_would_be_if_it_ended_there(data, tmp_path):
    """Frozen in place, with the batch norms' statistics over the same batches."""
    changes = {
        "sparsity_scheduler_conf": {**LENGTHS, "milestones": [0.2, 0.5]},
        "sparsity_goal_conf": {"target": 0.5},
        "sparsity_constraint": "projected",
        "sparsity_constraint_conf": {},
    }
    net, optimizer = start(**changes)
    controller = net.controller
    (_, end), *_ = controller.scheduler.pauses
    train(net, optimizer, range(end))
    assert controller.scheduler.milestone(controller.update) == 0.2

    def batches(count: int) -> list:
        """Anew, as ESPnet's forward changes what it reads."""
        return [(["a", "b", "c"], batch(i)) for i in range(count)]

    before = {name: x.clone() for name, x in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    generator = torch.get_rng_state()
    found = fixed_state(net, controller, batches(BATCHES + 5))
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in net.modules()] == modes
    assert_same(net.state_dict(), before)
    assert net.controller is controller

    decide_(controller.budget.sites, controller.plan())
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    net.eval()
    net.controller = None
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for names, inputs in batches(BATCHES):
            net(**inputs, utt_id=names)
    assert norms
    assert_same({**net.state_dict()}, found)
    gates = [m for m in net.modules() if isinstance(m, HardConcrete)]
    assert all(gate.is_decided() for gate in gates)


def test_batches_that_can_be_read_only_once(data, tmp_path):
    net, _ = start(
        sparsity_scheduler_conf={**LENGTHS, "milestones": [0.2, 0.5]},
        sparsity_goal_conf={"target": 0.5},
        sparsity_constraint="projected",
        sparsity_constraint_conf={},
    )
    check_batches(net.controller, [])
    with pytest.raises(ValueError, match=r"milestones is \[0.2, 0.5\], but the iterator"):
        check_batches(net.controller, iter([]))
    without, _ = start()
    check_batches(without.controller, iter([]))
    chunks = {
        **{"iterator_type": "chunk", "chunk_length": 40, "chunk_shift_ratio": 1.0},
        **{
            "num_cache_chunks": 16,
            "token_type": None,
            "token_list": CONFIG["token_list"],
        },
    }
    with pytest.raises(ValueError, match="expected iterator_type: sequence"):
        run(data, tmp_path / "exp", **PRUNING, **chunks)


REFUSED = [
    ([0.35, 0.2, 0.5], "milestones is .0.35, 0.2, 0.5.; expected a list of rising"),
    ([0.2, 0.35], "expected the last to be the target .* 0.5"),
    ([0.2, 0.6], "expected the last to be the target .* 0.5"),
    ([0.0001, 0.5], "target sparsity in params is 0.0001, but the gates' expected"),
    ([0.4, 0.45, 0.5], "the milestone 0.45 has 5 updates, .* takes some 6"),
]


@pytest.mark.parametrize(("milestones", "message"), REFUSED)
def test_what_is_refused_before_the_first_update(milestones, message, data, tmp_path):
    conf = {**PRUNING["sparsity_scheduler_conf"], "milestones": milestones}
    with pytest.raises(ValueError, match=message):
        run(data, tmp_path / "exp", **{**PRUNING, "sparsity_scheduler_conf": conf})
    assert not list(tmp_path.glob("exp/*.pth"))
    assert not list(tmp_path.glob("exp/milestone*"))


def test_other_milestones_are_not_resumed(data, finished):
    conf = {**PRUNING["sparsity_scheduler_conf"], "milestones": [0.3, 0.5]}
    with pytest.raises(ValueError, match=r"milestones was \[0.2, 0.35, 0.5\], is \[0.3"):
        run(data, finished, **{**PRUNING, "sparsity_scheduler_conf": conf})


def test_a_penalty_has_milestones_too(data, tmp_path):
    """Its gates need not have settled; the network's exact count meets the target."""
    conf = {"warmup_steps": 2, "ramp_steps": 30, "hold_steps": 6, "target": 0.5}
    short, enough = ({**conf, "milestones": [share, 0.5]} for share in (0.1, 0.25))
    more = {"sparsity_scheduler": "linear", "max_epoch": 16}
    with pytest.raises(ValueError, match=r"milestone 0\.1 has 12 .* takes some 18"):
        run(data, tmp_path / "short", sparsity_scheduler_conf=short, **more)
    out = tmp_path / "exp"
    run(data, out, sparsity_scheduler_conf=enough, **more)
    for folder, target in ((out / "milestone_0.25", 0.25), (out, 0.5)):
        cut = tmp_path / f"cut_{target}"
        assert main(["cut", str(folder), "--out", str(cut)]) == 0
        report = json.loads((cut / "cut.json").read_text())
        assert 0 <= report["sparsity"]["params"] - target <= 0.03
    config = yaml.safe_load((out / "milestone_0.25/config.yaml").read_text())
    assert "target" not in config["sparsity_scheduler_conf"]  # where it was


def test_they_are_whole(finished):
    for share in SHARES:
        assert is_whole(finished / f"milestone_{share}/model.pth")

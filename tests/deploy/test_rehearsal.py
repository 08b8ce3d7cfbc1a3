"""A rehearsal prunes a real experiment for some 50 updates, by ESPnet's own command."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import yaml

from espnet_l0prune.cli import main
from espnet_l0prune.cli.parser import COMMANDS, get_parser
from espnet_l0prune.core.phases import MEASURED
from espnet_l0prune.core.schedules import LinearSparsityScheduler
from espnet_l0prune.deploy.rehearsal import Rehearsal, fast_forward
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.runs import UTTERANCES, make_data

BATCHES = {"batch_type": "unsorted", "batch_size": 2, "accum_grad": 2}
EPOCH = UTTERANCES // 4  # updates


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A dense experiment whose configuration names its data."""
    folder = tmp_path_factory.mktemp("dense")
    make_data(folder)
    paths = [[f"{folder}/feats", "speech", "npy"], [f"{folder}/text", "text", "text"]]
    data = {}
    for part in ("train", "valid"):
        data[f"{part}_data_path_and_name_and_type"] = paths
        data[f"{part}_shape_file"] = [f"{folder}/shape"]
    save_experiment(folder, **BATCHES, **data, num_workers=0, optim_conf={"lr": 1e-3})
    return folder


@pytest.mark.slow
def test_it_says_that_the_pruning_lands_and_how_long_it_takes(dense, tmp_path):
    out = tmp_path / "l0"
    words = ["adopt", str(dense), "--out", str(out), "--params", "0.4", "--rehearse"]
    answer = COMMANDS["adopt"].run(
        get_parser().parse_args([*words, "--epochs", "9", "--finetune_epochs", "4"])
    )
    assert answer.code == 0
    found = json.loads(json.dumps(answer.data, default=str))["rehearsal"]
    rehearsal = Rehearsal(**{**found, "log": Path(found["log"])})
    assert (rehearsal.updates, rehearsal.skipped) == (50, 0)
    assert rehearsal.target == {"params": 0.4}
    assert rehearsal.actual["params"] == pytest.approx(0.4, abs=0.03)  # units are large
    assert rehearsal.distance < 1e-4
    assert 0 < rehearsal.undecided < 0.05
    assert rehearsal.follows
    assert rehearsal.problem is None
    gated, fixed = rehearsal.update
    validation = rehearsal.validation
    assert min(gated, fixed, validation) > 0
    assert rehearsal.pruning == pytest.approx(9 * (EPOCH * gated + validation))
    assert rehearsal.fine_tuning == pytest.approx(4 * (EPOCH * fixed + validation))
    shown = answer.shown
    assert [line for line in rehearsal.lines() if line in shown] == rehearsal.lines()
    assert "Rehearsal: the pruning lands. In 50 updates it removed 4" in "\n".join(shown)

    log = rehearsal.log.read_text()
    assert "'hold' at update 22" in log
    assert "'frozen' at update 26" in log
    left = {path.name for path in (out / "rehearsal").iterdir()}
    assert left == {"config.yaml", "train.log"}
    assert not (out / "pruned").exists()
    assert yaml.safe_load((out / "prune.yaml").read_text())["max_epoch"] == 9


@pytest.mark.slow
def test_it_has_no_milestones(dense, tmp_path):
    """Its ramp is too short to pause. What is trained is the command of the pruning."""
    out = tmp_path / "l0"
    words = ["adopt", str(dense), "--out", str(out), "--params", "0.4", "--rehearse"]
    words += ["--epochs", "14", "--finetune_epochs", "4", "--milestones", "0.2"]
    answer = COMMANDS["adopt"].run(get_parser().parse_args(words))
    assert answer.code == 0
    assert (out / "finetune_0.2.yaml").exists()
    left = {path.name for path in (out / "rehearsal").iterdir()}
    assert left == {"config.yaml", "train.log"}


@pytest.mark.slow
def test_a_training_that_fails_is_told(dense, tmp_path, capsys):
    words = ["adopt", str(dense), "--out", str(tmp_path / "l0"), "--rehearse"]
    nowhere = f"{tmp_path}/none, speech, npy"
    name = "train_data_path_and_name_and_type"
    assert main([*words, "--set", f"{name}=[[{nowhere}]]"]) == 1
    said = capsys.readouterr()
    assert "the rehearsal failed with exit code 1: FileNotFoundError: " in said.err
    assert f"{tmp_path}/none" in said.err
    assert f"Its log is {tmp_path}/l0/rehearsal/train.log" in said.err
    assert not said.out
    assert (tmp_path / "l0/prune.yaml").exists()
    assert (tmp_path / "l0/finetune.yaml").exists()


def test_it_needs_the_data(dense, tmp_path, capsys):
    words = ["adopt", str(dense), "--out", str(tmp_path / "l0"), "--rehearse"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--no_data"])
    assert "--no_data: not allowed with argument --rehearse" in capsys.readouterr().err
    assert not (tmp_path / "l0").exists()


@pytest.mark.parametrize(
    ("lengths", "fast"),
    [((0.25, 3.75, 0.75), [2, 20, 4]), ((1000, 10000, 10000), [2, 12, 12]),
     ((0, 0, 2), [0, 0, 25]), ((97, 1, 1), [25, 1, 1])],
)  # fmt: skip
def test_the_schedule_keeps_its_proportions(lengths, fast):
    scheduler = LinearSparsityScheduler(0.0, *lengths, in_epochs=True)
    assert list(fast_forward(scheduler).values()) == fast
    measuring = LinearSparsityScheduler(0.0, *lengths, True, gate_start="taylor")
    least = [max(fast[0], MEASURED), *fast[1:]]
    assert list(fast_forward(measuring).values()) == least


def test_what_is_wrong_is_told_with_a_remedy():
    landed = Rehearsal(
        log=Path("l0/rehearsal/train.log"),
        updates=50,
        skipped=2,
        target={"params": 0.5, "macs": 0.6},
        actual={"params": 0.5, "macs": 0.597},
        distance=0.004,
        undecided=0.04,
        follows=True,
        loss=31.0,
        memory=20.25,
        update=(0.31, 0.25),
        validation=60.0,
        pruning=20_000.0,
        fine_tuning=3_600.0,
    )
    assert landed.lines() == [
        "Rehearsal: the pruning lands. In 50 updates it removed 50.0% of the params "
        "(target: 50.0%), 59.7% of the macs (target: 60.0%). Before the gates were "
        "fixed, 4.0% of them were undecided, and the expected sparsity was 0.40 points "
        "off. The loss of the task is 31 in the end.",
        "An update takes 0.31 s, or 0.25 s once the gates are fixed, and a validation 60 "
        "s, with 20.2 GB of the GPU's memory: pruning takes about 5 hours and 33 "
        "minutes, fine-tuning 1 hour.",
    ]
    for changes, said in (
        ({"loss": math.nan}, "the loss of the validation is no finite number; lower the"),
        ({"skipped": 6}, "6 updates had gradients that are no finite numbers"),
        (
            {"actual": {"params": 0.5, "macs": 0.5}},
            "too little is removed; choose more",
        ),
        ({"distance": 0.02}, "expected sparsity does not follow its target; bring the"),
    ):
        failed = dataclasses.replace(landed, **changes)
        assert f"the pruning does not land: {failed.problem}" in failed.lines()[0]
        assert said in failed.problem
    penalty = dataclasses.replace(landed, distance=0.3, follows=False, pruning=None)
    assert penalty.problem is None
    assert "runs, but a penalty needs more updates to show" in penalty.lines()[0]
    assert "how many updates an epoch has cannot be told" in penalty.lines()[1]

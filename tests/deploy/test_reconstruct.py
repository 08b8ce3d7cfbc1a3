"""A cut whose layers are fitted to the teacher, on the data of the training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.plan import plan_of
from espnet_l0prune.core.selection import select
from espnet_l0prune.deploy.cut import cut_experiment
from espnet_l0prune.deploy.reconstruct import Reconstructor
from espnet_l0prune.plugin.counting import sites_of
from espnet_l0prune.plugin.experiment import load_experiment, load_model, read_config
from espnet_l0prune.plugin.utterances import read_utterances
from espnet_l0prune.testing.models import budget
from espnet_l0prune.testing.runs import make_data, run

STOCK = {
    "encoder": "conformer",
    "model": "espnet",
    "optim": "adamw",
    "sparsity_scheduler": None,
    "sparsity_scheduler_conf": {},
    "sparsity_constraint": None,
    "sparsity_constraint_conf": {},
}
SCHEDULE = {"warmup_steps": 1, "ramp_steps": 1, "hold_steps": 1}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    make_data(folder)
    run(folder, folder / "exp", max_epoch=40, optim_conf={"lr": 1e-2}, **STOCK)
    return folder / "exp"


def teacher_of(folder) -> dict[str, str]:
    files = {"teacher_config": "config.yaml", "teacher_model_file": "latest.pth"}
    return {name: str(folder / file) for name, file in files.items()}


def save_pruned(dense, folder, units="default", sparsity: float = 0.5, **changes):
    """Write an experiment in which random units of a dense one have closed gates."""
    config = yaml.safe_load((dense / "config.yaml").read_text())
    config |= {
        "encoder": "l0_conformer",
        "model": "l0_distill",
        "model_conf": {**config["model_conf"], **teacher_of(dense)},
        "sparsity_scheduler": "linear",
        "sparsity_scheduler_conf": {"target": sparsity, **SCHEDULE},
        **changes,
    }
    config["encoder_conf"]["units"] = units
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    model = ASRTask.build_model(read_config(folder / "config.yaml"))
    state = torch.load(dense / "latest.pth")
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    torch.manual_seed(0)
    scores = [torch.rand(len(g.log_alpha)) for g in budget(model).gates.values()]
    counted = budget(model)
    decide_(model.encoder.sites(), select(counted, {"params": sparsity}, scores=scores))
    torch.save(model.state_dict(), folder / "latest.pth")
    return folder


def test_fitted_layers_are_nearer_to_the_teacher(dense, tmp_path, capsys):
    pruned = save_pruned(dense, tmp_path / "pruned")
    plain, fitted = tmp_path / "plain", tmp_path / "fitted"
    cut_experiment(pruned, plain)
    command = ["cut", str(pruned), "--out", str(fitted), "--reconstruct", "12"]
    assert main(command) == 0
    assert "fitted to the teacher on 12 utterances: loss" in capsys.readouterr().out
    report = json.loads((fitted / "cut.json").read_text())
    found = report["reconstruction"]
    assert found["taken"]
    assert found["after"] < found["before"]
    assert json.loads((plain / "cut.json").read_text())["reconstruction"] is None
    assert report["difference"]["float64"] <= 1e-10  # before it was fitted

    states = [torch.load(folder / "model.pth") for folder in (plain, fitted)]
    moved = {n for n, w in states[0].items() if not torch.equal(w, states[1][n])}
    layers = ("w_2", "linear_out", "pointwise_conv2", "conv.2", "out.0")
    assert moved
    assert all(name.rsplit(".", 1)[0].endswith(layers) for name in moved)
    for name in ("config.yaml", "structure.yaml", "plan.json"):
        assert (plain / name).read_text() == (fitted / name).read_text()

    # as it says, and the same each time
    again = tmp_path / "again"
    assert cut_experiment(pruned, again, reconstruct=12).reconstruction is not None
    assert all(torch.equal(w, states[1][n]) for n, w in weights(again).items())
    held_out = read_utterances(read_config(pruned / "config.yaml"), 12)[3::4]
    assert len(held_out) == 3
    model, _ = load_model(fitted / "config.yaml", fitted / "model.pth")
    with torch.no_grad():
        losses = [float(model.eval()(**one)[0]) for one in held_out]
    assert sum(losses) / len(losses) == pytest.approx(found["after"])


def test_what_judges_a_fit_takes_no_part_in_it(dense, tmp_path):
    """Other utterances in its place leave each weight as it is."""
    pruned = save_pruned(dense, tmp_path / "pruned")
    cut_experiment(pruned, tmp_path / "plain")
    model, args = load_experiment(pruned, "latest.pth")
    fitted = []
    for others in (False, True):
        fitting = Reconstructor(model, args, plan_of(sites_of(model)), 12)
        if others:
            fitting.utterances[3::4] = fitting.utterances[2::4]
        small, _ = load_experiment(tmp_path / "plain", "model.pth")
        assert fitting.fit_(small).taken
        fitted.append(small.state_dict())
    assert all(torch.equal(w, fitted[1][name]) for name, w in fitted[0].items())


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pth")


def test_a_model_that_got_worse_is_left_as_it_was(dense, tmp_path):
    """Its teacher has learnt nothing, and it has lost next to nothing."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    config = (dense / "config.yaml").read_text()
    (teacher / "config.yaml").write_text(config)
    torch.manual_seed(7)
    new = ASRTask.build_model(read_config(teacher / "config.yaml"))
    torch.save(new.state_dict(), teacher / "latest.pth")
    conf = {**yaml.safe_load(config)["model_conf"], **teacher_of(teacher)}
    pruned = save_pruned(dense, tmp_path / "pruned", sparsity=0.02, model_conf=conf)
    cut_experiment(pruned, tmp_path / "plain")
    report = cut_experiment(pruned, tmp_path / "fitted", reconstruct=12)
    assert report.reconstruction is not None
    assert not report.reconstruction.taken
    assert "so that it was left as it was" in str(report.reconstruction)
    plain = weights(tmp_path / "plain")
    assert all(torch.equal(w, plain[n]) for n, w in weights(tmp_path / "fitted").items())


def test_utterances_are_one_by_one_and_not_in_order(dense):
    args = read_config(dense / "config.yaml")
    some = read_utterances(args, 5)
    assert [len(one["speech"]) for one in some] == [1] * 5
    every = read_utterances(args, 1000)
    assert len(every) == 12
    assert all(torch.equal(*pair) for pair in speech(some, every))
    lengths = [int(one["speech_lengths"]) for one in every]
    in_order = [int(line.split()[1].split(",")[0]) for line in shapes(args)]
    assert sorted(lengths) == sorted(in_order)
    assert lengths != in_order


def speech(*lists) -> list[tuple]:
    return [tuple(one["speech"] for one in pair) for pair in zip(*lists, strict=False)]


def shapes(args) -> list[str]:
    with open(args.train_shape_file[0]) as file:
        return file.read().splitlines()


def test_a_students_own_weights_for_losses_do_not_matter(dense, tmp_path):
    reports = []
    for i, weight in enumerate((1.0, 0.0)):
        conf = yaml.safe_load((dense / "config.yaml").read_text())["model_conf"]
        conf |= teacher_of(dense) | {"task_weight": weight}
        pruned = save_pruned(dense, tmp_path / f"pruned{i}", model_conf=conf)
        reports.append(cut_experiment(pruned, tmp_path / f"cut{i}", reconstruct=12))
    assert reports[0].reconstruction == reports[1].reconstruction


def test_what_training_pads_or_widens(dense, tmp_path):
    """Utterances that are too short alone are left out; float64 is read as float32."""
    args = read_config(dense / "config.yaml")
    (feats, *_), *others = args.train_data_path_and_name_and_type
    paths = dict(line.split() for line in Path(feats).read_text().splitlines())
    paths["u03"] = str(tmp_path / "short.npy")
    np.save(paths["u03"], np.zeros((5, 20), "float32"))
    (tmp_path / "feats").write_text("".join(f"{k} {v}\n" for k, v in paths.items()))
    data = [[str(tmp_path / "feats"), "speech", "npy"], *others]
    changes = {"train_data_path_and_name_and_type": data, "train_dtype": "float64"}
    pruned = save_pruned(dense, tmp_path / "pruned", **changes)
    found = cut_experiment(pruned, tmp_path / "cut", reconstruct=12).reconstruction
    assert found is not None
    assert found.utterances == 11


def test_what_cannot_be_reconstructed(dense, tmp_path, capsys):
    few = tmp_path / "few"
    make_few = {"train_shape_file": [str(few)]}
    args = read_config(dense / "config.yaml")
    few.write_text("\n".join(shapes(args)[:3]) + "\n")
    gone = [[str(tmp_path / "gone"), "speech", "npy"]]
    conf = yaml.safe_load((dense / "config.yaml").read_text())["model_conf"]
    width = {"units": ["width"], "sparsity": 0.3}
    smaller = tmp_path / "smaller"
    smaller.mkdir()
    config = yaml.safe_load((dense / "config.yaml").read_text())
    config["encoder_conf"]["linear_units"] -= 1
    (smaller / "config.yaml").write_text(yaml.safe_dump(config))
    new = ASRTask.build_model(read_config(smaller / "config.yaml"))
    torch.save(new.state_dict(), smaller / "latest.pth")
    broken = tmp_path / "broken"
    broken.write_text("u00 /nowhere.npy\n")
    unread = [[str(broken), "speech", "npy"]]
    for i, (changes, message) in enumerate(
        (
            ({"model_conf": conf}, "there is no teacher to fit the cut model to"),
            (make_few, "the training data have 3 utterances that are long enough"),
            (
                {"train_data_path_and_name_and_type": gone},
                "training data are not here: .*gone of its configuration",
            ),
            (
                {"train_data_path_and_name_and_type": unread},
                r"\(.*broken.*\) cannot be read \(.*\); expected them as training had",
            ),
            (
                {"model_conf": {**conf, **teacher_of(smaller)}},
                "smaller/config.yaml has {'ffn_modules': 1, 'ffn_channels': 11} in .*, "
                "the model before this cut {'ffn_modules': 1, 'ffn_channels': 12}",
            ),
            (width, "features of the residual stream, so that the streams of both"),
        )
    ):
        pruned = save_pruned(dense, tmp_path / f"pruned{i}", **changes)
        with pytest.raises(ValueError, match=message):
            cut_experiment(pruned, tmp_path / "cut", reconstruct=8)
        assert not (tmp_path / "cut").exists()
    command = ["cut", str(pruned), "--out", str(tmp_path / "cut"), "--reconstruct", "7"]
    assert main(command) == 1
    assert "--reconstruct is 7; expected a whole number in [8" in capsys.readouterr().err

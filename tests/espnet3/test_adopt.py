"""An experiment of ESPnet3 is adopted, pruned, cut and fine-tuned with its own YAML."""

import shutil

import pytest
import yaml

pytest.importorskip("espnet3.components.data.base_dataset", reason="before ESPnet3")

from espnet3.systems.base.training import train
from espnet3.utils.config_utils import load_and_merge_config

from espnet_l0prune.cli import main
from espnet_l0prune.plugin.experiment import load_experiment
from tests.espnet3.runs import MODEL, last, make_noise, run

DENSE = {
    "model": {
        **{name: value for name, value in MODEL.items() if "sparsity" not in name},
        **{"encoder": "conformer", "model": "espnet", "sparsity_scheduler": None},
    },
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 3e-3},
    "best_model_criterion": [["valid/loss", 1, "min"]],
    "trainer": {"max_epochs": 1, "callbacks": []},
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    make_noise(folder)
    run(folder, folder / "dense", DENSE)
    return folder / "dense"


def adopt(dense, out, *more: str) -> int:
    return main(["adopt", str(dense), "--out", str(out), "--params", "0.4", *more])


def test_from_a_dense_experiment_to_a_fine_tuned_one(dense, capsys):
    out = dense.with_name("l0")
    assert adopt(dense, out, "--set", "optim_conf.gate_lr=0.05") == 0
    commands = capsys.readouterr().out.partition("Next:")[2].strip().splitlines()
    assert commands[2].split()[:4] == ["python", "run.py", "--stages", "train"]
    for name in ("prune", "finetune"):  # what the commands do, in this process
        swap = shutil.copy(out / f"{name}.yaml", dense.with_name(f"{name}.yaml"))
        conf = load_and_merge_config(swap, "training.yaml", "egs3.TEMPLATE.esp2_asr")
        train(conf)
        if name == "prune":
            words = commands[3].split()
            assert words[0] == "espnet-l0prune"
            assert main(words[1:]) == 0
    pruned, finetuned = last(out / "pruned"), last(out / "finetuned")
    gates, weights = pruned["optimizer_states"][0]["param_groups"][1::-1]
    assert (gates["gate_lr"], weights["initial_lr"]) == (0.05, 3e-3)
    (group,) = finetuned["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["lr"]) == (1e-3, 0.0)
    before, after = (
        sum(p.numel() for p in load_experiment(folder, name)[0].encoder.parameters())
        for folder, name in ((dense, "last.ckpt"), (out / "finetuned", "last.ckpt"))
    )
    assert 0.3 < 1 - after / before < 0.5
    for form in ("plugin", "stock"):  # compares what it has packed
        words = ["--checkpoint", "last.ckpt", "--out", str(out / f"{form}.zip")]
        assert main(["export", form, str(out / "finetuned"), *words]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"_target_": "torch.optim.SGD", "momentum": 0.9}}, "momentum"),
        ({"optimizer": None}, "optimizer: None; expected a mapping"),
        ({"scheduler": {"_target_": "my.Own"}}, "_target_ is my.Own; expected one of"),
        ({"task": "espnet3.systems.esp2_asr.src.transducer_task.X"}, "of its own"),
        ({"trainer": []}, "trainer: []; expected a mapping"),
        ({"trainer": {"callbacks": 5}}, "callbacks: 5; expected a list of mappings"),
        ({"exp_tag": "../dense"}, "exp_tag: ../dense; expected the name of the YAML"),
        ({"optimizer": {"_target_": "x.L0AdamW"}}, "is a pruning, or was cut from one"),
    ],
)
def test_what_cannot_be_adopted(change, message, dense, tmp_path, capsys):
    config = yaml.safe_load((dense / "config.yaml").read_text("utf-8"))
    shutil.copytree(dense, tmp_path / "dense", symlinks=True)
    changed = yaml.safe_dump({**config, **change})
    (tmp_path / "dense/config.yaml").write_text(changed, "utf-8")
    assert adopt(tmp_path / "dense", tmp_path / "l0") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "l0").exists()


def test_milestones_are_refused(dense, tmp_path, capsys):
    assert adopt(dense, tmp_path / "l0", "--milestones", "0.2") == 1
    assert "milestones is [0.2, 0.4], and the experiment is" in capsys.readouterr().err
    assert not (tmp_path / "l0").exists()


EVIL = {"_target_": "os.system", "command": "touch evil"}


def test_callbacks_that_could_run_code_are_not_copied(dense, tmp_path):
    """Not by themselves, and not as an option of one that is known."""
    config = yaml.safe_load((dense / "config.yaml").read_text("utf-8"))
    nested = "lightning.pytorch.callbacks.LambdaCallback"
    known = {"_target_": "lightning.pytorch.callbacks.DeviceStatsMonitor"}
    callbacks = [EVIL, {"_target_": nested, "on_fit_start": EVIL}, known]
    config["trainer"]["callbacks"] = callbacks
    shutil.copytree(dense, tmp_path / "dense", symlinks=True)
    (tmp_path / "dense/config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    assert adopt(tmp_path / "dense", tmp_path / "l0") == 0
    for name in ("prune", "finetune"):
        text = (tmp_path / f"l0/{name}.yaml").read_text("utf-8")
        assert "os.system" not in text
        assert yaml.safe_load(text)["trainer"]["callbacks"][0] == known


def test_a_pruning_has_no_callbacks_that_it_refuses(dense, tmp_path):
    config = yaml.safe_load((dense / "config.yaml").read_text("utf-8"))
    stop = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "x"}
    config["trainer"]["callbacks"] = [stop]
    shutil.copytree(dense, tmp_path / "dense", symlinks=True)
    (tmp_path / "dense/config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    assert adopt(tmp_path / "dense", tmp_path / "l0") == 0
    written = [tmp_path / f"l0/{name}.yaml" for name in ("prune", "finetune")]
    prune, finetune = (yaml.safe_load(file.read_text("utf-8")) for file in written)
    ours = {"_target_": "espnet_l0prune.plugin.callback.L0Callback"}
    assert prune["trainer"]["callbacks"] == [ours]
    assert finetune["trainer"]["callbacks"] == [stop, ours]


def test_other_schedulers_cannot_be_merged(dense, tmp_path, capsys):
    more = "--set_finetune", "scheduler=steplr"
    assert adopt(dense, tmp_path / "l0", *more) == 1
    assert "scheduler is steplr; expected warmuplr" in capsys.readouterr().err


def test_no_rehearsal(dense, tmp_path, capsys):
    assert adopt(dense, tmp_path / "l0", "--rehearse") == 1
    assert "--rehearse runs ESPnet2's trainer" in capsys.readouterr().err

"""Every recognizer that ESPnet3's recipes train goes the whole way, made small."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("espnet3.components.data.base_dataset", reason="before ESPnet3")

from espnet3.systems.base.training import train
from espnet3.utils.config_utils import load_and_merge_config
from espnet3.utils.task_utils import save_espnet_config

from espnet_l0prune.cli import main
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.experiment import load_experiment, read_config
from tests.espnet3.runs import MODEL, TASK, configuration, make_noise

EGS3 = Path(importlib.util.find_spec("egs3").submodule_search_locations[0])
CONFIGS = sorted(
    path
    for path in EGS3.glob("*/esp2_asr/conf/**/train*.yaml")
    if path.relative_to(EGS3).parts[0] != "TEMPLATE"
)
NAMES = [f"{path.relative_to(EGS3).parts[0]}-{path.stem}" for path in CONFIGS]
SMALL = {
    "output_size": 16,
    "attention_heads": 4,
    "linear_units": 12,
    "num_blocks": 2,
    "cgmlp_linear_units": 8,
    "embed_size": 8,
    "hidden_size": 8,
    "joint_space_size": 8,
}
GONE = ("vocab_size", "normalize", "specaug", "init")
OURS = ("token_list", "frontend", "frontend_conf", "normalize")  # for short noise


def shrink(conf: dict) -> dict:
    """What a recipe's model says, with small networks."""
    model = {}
    for name, value in conf["model"].items():
        if name.endswith(("coder_conf", "network_conf")):
            value = value | {k: v for k, v in SMALL.items() if k in value}
        if name.removesuffix("_conf") not in GONE:
            model[name] = value
    return model | {name: MODEL[name] for name in OURS}


def save_dense(config: Path, folder: Path) -> str:
    """Write what a training leaves, with random weights; the name of the task."""
    conf = yaml.safe_load(config.read_text("utf-8"))
    optimizer = {"_target_": "torch.optim.AdamW", "lr": 1e-3}
    change = {
        "task": conf["task"],
        "trainer": {"max_epochs": 1, "callbacks": []},
        "best_model_criterion": [["valid/loss", 1, "min"]],
    }
    whole = configuration(folder, folder / "dense", change)
    whole |= {"model": shrink(conf), "optimizer": optimizer}
    file = folder / "dense.yaml"
    file.write_text(yaml.safe_dump(whole))
    merged = load_and_merge_config(file, "training.yaml", "egs3.TEMPLATE.esp2_asr")
    save_espnet_config(merged.task, merged, merged.exp_dir)
    if conf["task"] == TASK:
        model = build_model(read_config(folder / "dense/config.yaml"))
        torch.save(model.state_dict(), folder / "dense/valid.acc.ave_1best.pth")
    return conf["task"]


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_it_goes_the_whole_way(config, tmp_path, capsys):
    make_noise(tmp_path)
    task = save_dense(config, tmp_path)
    out = tmp_path / "l0"
    command = ["adopt", str(tmp_path / "dense"), "--out", str(out), "--params", "0.3"]
    done = main([*command, "--epochs", "8", "--finetune_epochs", "1"])
    if task != TASK:  # its encoder is of its own, which no registry knows
        assert done == 1
        assert "transducer" in capsys.readouterr().err
        return
    assert done == 0, capsys.readouterr().err
    commands = capsys.readouterr().out.partition("Next:")[2].strip().splitlines()
    for name in ("prune", "finetune"):  # what the commands do, in this process
        swap = shutil.copy(out / f"{name}.yaml", tmp_path / f"{name}.yaml")
        train(load_and_merge_config(swap, "training.yaml", "egs3.TEMPLATE.esp2_asr"))
        if name == "prune":
            assert main(commands[3].split()[1:]) == 0, capsys.readouterr().err
    before, after = (
        sum(p.numel() for p in load_experiment(folder, name)[0].encoder.parameters())
        for folder, name in (
            (tmp_path / "dense", "valid.acc.ave_1best.pth"),
            (out / "finetuned", "last.ckpt"),
        )
    )
    assert 0.25 < 1 - after / before < 0.4

"""Experiments of older ESPnets: what their parser wrote is adopted and trained."""

import argparse
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask, preprocessor_choices
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_l0prune.cli import main
from espnet_l0prune.deploy.adopt import adopt
from espnet_l0prune.deploy.choice import Choice
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.runs import CONFIG, data_options, make_data

SHARED = Path(__file__).parents[3] / "shared/cases/espnet202402/config.yaml"
GONE = {"use_lora": False, "lora_conf": {}, "save_lora_only": True}  # of 202310, 202402
MACHINE = {
    name: CONFIG[name]
    for name in ("num_workers", "num_att_plot", "use_tensorboard", "use_matplotlib")
}


def older(folder: Path, **changes) -> None:
    """An experiment of 202402: some options are gone since, others have come."""
    save_experiment(folder, **MACHINE)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for name in ("use_adapter", "adapter", "adapter_conf", "save_strategy", "use_tf32"):
        config.pop(name, None)
    written_out = get_default_kwargs(preprocessor_choices.get_class("default"))
    more = {"max_epoch": "2", "preprocessor_conf": written_out, **changes}
    text = yaml.safe_dump({**config, **GONE, **more})
    (folder / "config.yaml").write_text(text)


def train(prune: Path, out: Path, data: Path) -> None:
    command = ["--config", str(prune), "--output_dir", str(out)]
    more = ["--batch_type", "unsorted", "--batch_size", "4"]
    ASRTask.main(cmd=[*command, *more, *data_options(data)])


def test_options_that_are_gone_are_left_out(tmp_path):
    older(tmp_path / "dense")
    make_data(tmp_path)
    found = adopt(tmp_path / "dense", tmp_path / "l0", None, Choice(epochs=(4, 1)))
    prune = yaml.safe_load(found.prune.read_text())
    assert not GONE.keys() & prune.keys()
    train(found.prune, tmp_path / "pruned", tmp_path)
    assert (tmp_path / "pruned/4epoch.pth").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_lora": True, "lora_conf": {"rank": 8}}, "use_lora is true: part of"),
        ({"use_adapter": True, "adapter": "lora"}, "use_adapter is true: part of"),
        ({"sharding": "all"}, "sharding is 'all', an option that ESPnet"),
        ({"max_epoch": "many"}, "ESPnet would not train with this: .* 'many'"),
    ],
)
def test_options_that_are_gone_and_matter_are_refused(changes, message, tmp_path):
    older(tmp_path / "dense", **changes)
    with pytest.raises(ValueError, match=message):
        adopt(tmp_path / "dense", tmp_path / "l0", None, Choice())
    assert not (tmp_path / "l0").exists()


def test_a_configuration_that_202402_wrote(tmp_path, capsys):
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    (tmp_path / "dense").mkdir()
    config = {**yaml.safe_load(SHARED.read_text()), **MACHINE, "input_size": 20}
    (tmp_path / "dense/config.yaml").write_text(yaml.safe_dump(config))
    model = build_model(argparse.Namespace(**config))
    torch.save(model.state_dict(), tmp_path / "dense/model.pth")
    command = ["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]
    assert main([*command, "--no_data", "--epochs", "4"]) == 0
    make_data(tmp_path)
    train(tmp_path / "l0/prune.yaml", tmp_path / "pruned", tmp_path)
    assert (tmp_path / "pruned/4epoch.pth").exists()

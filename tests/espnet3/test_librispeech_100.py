"""egs/espnet3/librispeech_100 is what adopt writes for ESPnet3's recipe of that name."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("espnet3.components.data.base_dataset", reason="before ESPnet3")

from espnet3.utils.config_utils import load_and_merge_config
from espnet3.utils.task_utils import get_espnet_model, save_espnet_config
from omegaconf import OmegaConf

from espnet_l0prune.cli import main

CONF = Path(__file__).parents[2] / "egs/espnet3/librispeech_100"
DENSE = "training_e_branchformer"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A copy of the recipe, in the working directory, with its dense model untrained."""
    (wheel,) = importlib.util.find_spec("egs3.librispeech_100").submodule_search_locations
    folder = tmp_path / "egs3/librispeech_100/esp2_asr"
    shutil.copytree(Path(wheel) / "esp2_asr", folder)
    monkeypatch.chdir(folder)
    file = Path(f"conf/tuning/{DENSE}.yaml")
    conf = load_and_merge_config(file, "training.yaml", "egs3.TEMPLATE.esp2_asr")
    tokens = [f"token{i}" for i in range(conf.tokenizer.vocab_size)]
    features = {"sum": np.zeros(80), "sum_square": np.full(80, 99.0)}
    Path(conf.tokenizer.save_path).mkdir(parents=True)
    Path(conf.tokenizer.save_path, "tokens.txt").write_text("\n".join(tokens))
    statistics = Path(conf.stats_dir, "train")
    statistics.mkdir(parents=True)
    np.savez(statistics / "feats_stats.npz", count=99, **features)
    save_espnet_config(conf.task, conf, conf.exp_dir)
    model = get_espnet_model(conf.task, OmegaConf.to_container(conf.model, resolve=True))
    torch.save(model.state_dict(), Path(conf.exp_dir, "valid.acc.ave_10best.pth"))
    return folder


def test_adopt_writes_it(recipe, capsys):
    options = ["--out", "exp/l0", "--params", "0.5", "--macs", "0.5"]
    assert main(["adopt", f"exp/{DENSE}", *options]) == 0
    printed = capsys.readouterr().out
    for name in ("prune", "finetune"):
        assert f"conf/tuning/l0_{name}.yaml" in printed  # beside the dense one
        written = yaml.safe_load((recipe / f"exp/l0/{name}.yaml").read_text("utf-8"))
        assert written == yaml.safe_load((CONF / f"{name}.yaml").read_text("utf-8"))

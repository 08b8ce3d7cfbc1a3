"""What earlier versions wrote, in whichever ESPnet: it is read, computes the same, and
goes on. `write_version.py` says what it is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from espnet_l0prune.cli import main
from espnet_l0prune.plugin.experiment import load_experiment, load_model
from espnet_l0prune.testing.runs import final, make_data
from tests.versions.outputs import compute
from tests.versions.write_version import CHECKPOINT, EPOCHS, INTERRUPTED, finetune, prune

WRITTEN = sorted(Path(__file__).parent.glob("*.zip"))
# In a Python of its own, as ours has the plugin already
PLAIN = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from espnet2.tasks.asr import ASRTask
from tests.versions.outputs import compute
model, _ = ASRTask.build_model_from_file("{config}", "{model}", "cpu")
assert "l0_conformer" not in ASRTask.get_parser().format_help()
np.save("plain.npy", compute(model))
"""


@pytest.fixture(params=WRITTEN, ids=lambda file: file.stem)
def folder(request, tmp_path, monkeypatch) -> Path:
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def unpacked(form: str) -> dict[str, str]:
    """The files of a zip of the model zoo, by what they are."""
    with zipfile.ZipFile(f"{form}.zip") as archive:
        archive.extractall(form)
    meta = yaml.safe_load(Path(form, "meta.yaml").read_text())
    return {
        "config": f"{form}/{meta['yaml_files']['asr_train_config']}",
        "model": f"{form}/{meta['files']['asr_model_file']}",
    }


def require_same(computed: np.ndarray) -> None:
    np.testing.assert_allclose(computed, np.load("computed.npy"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["plugin", "stock"])
def test_a_zip_computes_what_it_did(form, folder):
    files = unpacked(form)
    model, _ = load_model(Path(files["config"]), Path(files["model"]))
    require_same(compute(model))


def test_a_stock_zip_needs_no_plugin(folder):
    code = PLAIN.format(**unpacked("stock"))
    environment = {**os.environ, "ESPNET_L0PRUNE_AUTOLOAD": "0"}
    command = [sys.executable, "-c", code, str(Path(__file__).parents[2])]
    subprocess.run(command, check=True, env=environment)
    require_same(np.load("plain.npy"))


def test_a_training_goes_on_and_what_was_cut_is_trained(folder):
    Path("data").mkdir()
    make_data(Path("data"))
    assert final(Path("exp/pruned"))["reporter"]["epoch"] == INTERRUPTED
    prune()
    assert final(Path("exp/pruned"))["reporter"]["epoch"] == EPOCHS
    assert main(["cut", "exp/pruned", "--out", "again"]) == 0
    structures = Path("exp/cut/structure.yaml"), Path("again/structure.yaml")
    one, other = (yaml.safe_load(path.read_text()) for path in structures)
    assert one.keys() == other.keys()
    finetune()
    model, _ = load_experiment(Path("exp/finetuned"), CHECKPOINT)
    assert model.encoder.structure() == one

"""What earlier versions wrote, in whichever ESPnet: it is read, computes the same, and
goes on. `write_version.py` says what it is."""

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


@pytest.fixture(params=WRITTEN, ids=lambda file: file.stem)
def folder(request, tmp_path, monkeypatch) -> Path:
    unzip(request.param, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def unzip(file: Path, folder: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)


def unpacked(folder: Path, form: str) -> tuple[Path, Path]:
    """The configuration and the weights of a zip of the model zoo."""
    unzip(folder / f"{form}.zip", home := folder / form)
    meta = yaml.safe_load((home / "meta.yaml").read_text())
    config, weights = meta["yaml_files"], meta["files"]
    return home / config["asr_train_config"], home / weights["asr_model_file"]


def require_same(computed: np.ndarray, folder: Path) -> None:
    expected = np.load(folder / "computed.npy")
    np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["plugin", "stock"])
def test_a_zip_computes_what_it_did(form, folder):
    """tests/deploy/test_export.py has the stock ones where there is no plugin."""
    model, _ = load_model(*unpacked(folder, form))
    require_same(compute(model), folder)


@pytest.mark.slow
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

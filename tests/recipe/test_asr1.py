"""The drop-in for an ESPnet checkout.

The whole of it needs one, with sph2pipe and sclite in its tools: ESPNET_ROOT names it.
"""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ASR1 = Path(__file__).parents[2] / "egs/librispeech/asr1"
ROOT = Path(os.environ.get("ESPNET_ROOT", "/nonexistent"))


def run(*command, cwd: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NLTK_DATA": "/nonexistent",
    }
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif("ESPNET_ROOT" not in os.environ, reason="ESPNET_ROOT is not set")
def test_mini_an4_from_data_to_the_packed_model(mini_an4, tmp_path):
    """In a tree of links to the checkout, which stays as it is."""
    scripts = ROOT / "egs2/TEMPLATE/asr1/asr.sh"
    before = hashlib.sha256(scripts.read_bytes()).hexdigest()
    recipe = tmp_path / "egs2/mini_an4/asr1"
    recipe.mkdir(parents=True)
    for name in ("tools", "egs2/TEMPLATE"):
        (tmp_path / name).symlink_to((ROOT / name).resolve())
    for name in ("cmd.sh", "conf", "local"):
        (recipe / name).symlink_to((ROOT / "egs2/mini_an4/asr1" / name).resolve())
    (recipe / "db.sh").symlink_to("../../TEMPLATE/asr1/db.sh")
    (recipe / "downloads.tar.gz").symlink_to(mini_an4.resolve())
    made = run(ASR1 / "setup.sh", tmp_path, "mini_an4", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    ours = tmp_path / "egs2/mini_an4/asr1_l0prune"
    for stages in ((1, 2), (3, 4)):  # interrupted between
        command = ["--params", "0.4", "--l0_stage", stages[0], "--l0_stop_stage"]
        result = run("./run.sh", *command, stages[1], "--ngpu", "0", cwd=ours)
        assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    assert hashlib.sha256((ours / "asr.sh").read_bytes()).hexdigest() == before
    adopted = ours / "exp/asr_mini_an4_adopted_params0.4"
    assert yaml.safe_load((adopted / "prune.yaml").read_text())["max_epoch"] == 24
    again = "./run.sh", "--l0_stage", "2", "--l0_stop_stage", "2"
    for params, message in (
        ("0.4", f"{adopted.name} was made with other options"),
        ("0.999", "these units reach at most"),
    ):
        words = ["--params", params, "--adopt_args", "--units heads"]
        result = run(*again, *words, cwd=ours)
        assert result.returncode != 0
        assert message in result.stderr
    cut = json.loads((ours / "exp/asr_mini_an4_cut_params0.4/cut.json").read_text())
    assert 0.4 <= cut["sparsity"]["params"] < 0.42
    finetuned = ours / "exp/asr_mini_an4_finetuned_params0.4"
    assert "### WER" in (finetuned / "RESULTS.md").read_text()
    (packed,) = finetuned.glob("*.zip")
    names = zipfile.ZipFile(packed).namelist()
    assert {"meta.yaml", f"{finetuned.relative_to(ours)}/config.yaml"} <= set(names)


def test_bad_use_is_said(tmp_path):
    assert "usage:" in run(ASR1 / "setup.sh", cwd=tmp_path).stdout
    result = run(ASR1 / "setup.sh", tmp_path, cwd=tmp_path)
    assert result.returncode == 1
    assert "expected an ESPnet checkout with egs2" in result.stderr
    assert "l0_stop_stage=4" in run(ASR1 / "run.sh", "--help", cwd=ASR1).stdout
    result = run(ASR1 / "run.sh", "--stage", "11", cwd=ASR1)
    assert result.returncode == 2
    assert "give --l0_stage" in result.stderr
    assert "is set here" in run(ASR1 / "run.sh", "--asr_exp", "x", cwd=ASR1).stderr
    assert "needs a value" in run(ASR1 / "run.sh", "--params", cwd=ASR1).stderr
    for words, message in (
        (["--model", "confromer"], "no conf/train_asr_confromer.yaml; --model chooses"),
        (["--prune_config", "none.yaml"], "--prune_config: there is no none.yaml"),
        (
            ["--prune_config", "conf/prune_asr_conformer.yaml", "--params", "0.4"],
            "has the sparsity itself; expected no --params and no --macs",
        ),
        (["--l0_stage", "two"], "l0 stages are 1 to 5, not 'two'"),
        (["--l0_stage", "3", "--l0_stop_stage", "2"], "--l0_stage 3 comes after"),
        (["--params", "1.5"], "--params is 1.5; expected a share in (0, 1)"),
        (["--macs", "0"], "--macs is 0; expected a share in (0, 1)"),
    ):
        result = run(ASR1 / "run.sh", *words, cwd=ASR1)
        assert result.returncode == 2, words
        assert message in result.stderr

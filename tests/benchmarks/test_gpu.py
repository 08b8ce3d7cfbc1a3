"""The part of `gpu.py` that `test_quick` leaves out: a pruning run on real speech."""

import importlib
import json
import logging
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
STAGES = [
    "corpus",
    "dense training",
    "adopt",
    "pruning, killed",
    "pruning, resumed",
    "cut",
    "decoding, cut",
    "decoding, dense",
]


@pytest.fixture(autouse=True)
def _logging_is_as_before():
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
def test_from_recordings_to_error_rates(fsdd, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    file = tmp_path / "found.json"
    options = ["--quick", "--parts", "run", "--data", str(fsdd), "--minutes", "20"]
    importlib.import_module("gpu").main([*options, "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [row["stage"] for row in rows] == STAGES, rows[-1]
    assert rows[5]["difference"] < 1e-10
    assert all("WER (%)" in row for row in rows[6:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_can_do(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit, match=r"there is no GPU .* or --quick"):
        importlib.import_module("gpu").main([])

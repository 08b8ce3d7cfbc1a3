"""Every benchmark runs, quickly, and writes what it found."""

import importlib
import json
import logging
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = (p for p in FOLDER.glob("*.py") if "def main(" in p.read_text("utf-8"))
NAMES = sorted(p.stem for p in PROGRAMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    file, threads = tmp_path / "found.json", torch.get_num_threads()
    try:
        importlib.import_module(name).main(["--quick", "--json", str(file)])
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
        sys.modules.pop(name)
    found = json.loads(file.read_text())
    assert found["rows"]
    assert {"date", "processor", "torch", "commit"} <= set(found["machine"])


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    cut_speed = importlib.import_module("cut_speed")
    with pytest.raises(SystemExit, match="there is no folder"):
        cut_speed.main(["--json", str(tmp_path / "none/found.json")])

"""Which cells of the matrix `make matrix` runs again."""

import json
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def matrix(tmp_path, monkeypatch):
    """The names of noxfile.py, in a repository with one commit."""
    monkeypatch.chdir(tmp_path)
    found = SimpleNamespace(**runpy.run_path(str(ROOT / "noxfile.py")))
    Path("docs").mkdir()
    git("init", "--quiet")
    commit("setup.py", "1")
    return found


def git(*words: str) -> None:
    who = "-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"
    subprocess.run(["git", *who, *words], check=True)


def commit(file: str, text: str) -> None:
    Path(file).write_text(text)
    git("add", file)
    git("commit", "--quiet", "--message", text)


def test_a_cell_has_passed_with_the_code_of_now_alone(matrix):
    cell, other, *_ = matrix.CELLS
    assert not matrix.has_passed(cell)
    row = {"cell": str(cell), "code": matrix.code(), "well": True}
    failed = {"cell": str(other), "code": matrix.code(), "well": False}
    rows = "".join(json.dumps(row) + "\n" for row in (row, failed))
    commit(str(matrix.RESULTS), rows)
    assert row["code"] == matrix.code() != ""  # docs are no code
    assert matrix.has_passed(cell)
    assert not matrix.has_passed(other)
    Path("setup.py").write_text("2")
    assert matrix.code() == ""
    assert not matrix.has_passed(cell)
    commit("setup.py", "3")
    assert not matrix.has_passed(cell)


def test_the_tests_of_a_line_are_there(matrix):
    for name in matrix.LINE:
        file, _, test = name.partition("::")
        assert (ROOT / file).exists()
        assert not test or f"def {test}(" in (ROOT / file).read_text()

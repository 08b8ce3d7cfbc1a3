"""The matrix: each promised Python, ESPnet and torch, in an environment of its own.

`make matrix` runs its cells one by one and appends a line for each to docs/matrix.jsonl.
A cell that has passed with the code of now is not run again, so that an interrupted
matrix goes on; `.venv/bin/nox -s 'matrix(3.13-202611-2.14)'` runs one alone. The Pythons
are looked for on the PATH.
"""

import json
import subprocess
from datetime import date
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import nox

RESULTS = Path("docs/matrix.jsonl")
ENVIRONMENTS = Path(".nox")
INSTALLERS = ["setup.py", *Path("tools").glob("*.txt"), "tools/install.sh"]
FULL = ["tests"]
LINE = [
    "tests/core",
    "tests/plugin/test_registration.py",
    "tests/deploy/test_adopt.py::test_from_a_dense_experiment_to_a_text",
]
VERSIONS = """
import json, platform
from importlib.metadata import version
found = {name: version(name) for name in ("espnet", "torch", "torchaudio", "numpy")}
print(json.dumps({"python": platform.python_version(), **found}))
"""


class Cell(NamedTuple):
    """The versions that are asked for, and the tests that are run with them."""

    python: str
    espnet: str
    torch: str
    tests: list[str]

    def __str__(self) -> str:
        return "-".join(self[:3])


CELLS = [
    Cell("3.11", "202511", "2.13", FULL),
    Cell("3.12", "202611", "2.14", FULL),
    Cell("3.11", "202506", "2.13", LINE),
    Cell("3.12", "202611", "2.11", LINE),
    Cell("3.13", "202611", "2.14", LINE),
]


def code() -> str:
    """The last commit that changed more than docs; "" where files differ from it."""
    git = ["git", "log", "-1", "--format=%h"], ["git", "status", "--porcelain"]
    commit, changed = (
        subprocess.check_output([*words, "--", ".", ":!docs"], text=True).strip()
        for words in git
    )
    return "" if changed else commit


def has_passed(cell: Cell) -> bool:
    """Whether a line says so of the code of now."""
    if not (RESULTS.exists() and code()):
        return False
    rows = map(json.loads, RESULTS.read_text("utf-8").splitlines())
    return any(
        row["cell"] == str(cell) and row["code"] == code() and row["well"] for row in rows
    )


def environment(session: nox.Session, cell: Cell) -> Path:
    """Its Python. As `make env`: made anew where what it is made from has changed."""
    venv = ENVIRONMENTS / str(cell)
    done = venv / ".done"
    made = done.stat().st_mtime if done.exists() else 0
    if made < max(Path(path).stat().st_mtime for path in INSTALLERS):
        pins = {"ESPNET": cell.espnet, "TORCH": cell.torch}
        where = {"PYTHON": f"python{cell.python}", "VENV": str(venv)}
        session.run("tools/install.sh", env=pins | where, external=True)
    return venv / "bin/python"


@nox.session(venv_backend="none")
@nox.parametrize("cell", CELLS, ids=[*map(str, CELLS)])
def matrix(session: nox.Session, cell: Cell) -> None:
    """Install, test, and keep the result."""
    if has_passed(cell):
        session.skip(f"it has passed with {code()}")
    before = code()
    python = environment(session, cell)
    said = ENVIRONMENTS / f"{cell}.xml"
    said.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-n", "auto", "--dist", "loadfile"]
    command += ["--no-loadscope-reorder", f"--junitxml={said}", *cell.tests]
    session.run(*command, external=True, success_codes=range(256))
    found = subprocess.check_output([python, "-c", VERSIONS], text=True)
    (suite,) = ElementTree.parse(said).getroot()
    counts = {k: int(suite.get(k)) for k in ("tests", "failures", "errors", "skipped")}
    well = not counts["failures"] + counts["errors"]
    row = {"cell": str(cell), "date": str(date.today()), "code": before}
    row |= json.loads(found)
    row |= {"full": cell.tests == FULL, "well": well, **counts}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    if not well:
        session.error(f"{cell} failed")

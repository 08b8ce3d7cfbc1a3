"""Imports go one way, along LAYERS; ESPnet not in core."""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "espnet_l0prune"
LAYERS = ["core", "networks", "plugin", "deploy", "report", "cli", "testing"]


def imported(path: Path) -> set[str]:
    """What a file imports, anywhere in it: modules, and what is taken out of them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer):
    above = LAYERS[LAYERS.index(layer) + 1 :]
    for path in (PACKAGE / layer).rglob("*.py"):
        for name in imported(path):
            assert not any(name.startswith(f"espnet_l0prune.{a}") for a in above), path
            if layer == "core":
                assert not name.startswith(("espnet.", "espnet2", "espnetez")), path


def test_no_circle():
    """Of files of the package, nor by an import within a function. A folder's `__init__`
    may bring in what is below it."""
    names = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    graph = {name: imported(path) & names.keys() for name, path in names.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_one_file_knows_where_espnet_has_its_layers():
    parts = "encoder", "decoder", "frontend", "layers", "transducer"
    places = "espnet.nets", "espnet2.legacy", *(f"espnet2.asr.{part}" for part in parts)
    places = *places, "espnet2.asr_transducer"
    files = {
        path.name
        for path in PACKAGE.rglob("*.py")
        if any(name.startswith(places) for name in imported(path))
    }
    assert files == {"espnet_modules.py"}


def python(code: str) -> str:
    environment = {**os.environ, "ESPNET_L0PRUNE_AUTOLOAD": "0"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_importing_the_package_brings_in_nothing_else():
    """Every Python of the environment pays for it at its start."""
    code = (
        "import sys; before = set(sys.modules); import espnet_l0prune\n"
        "print(*(set(sys.modules) - before))"
    )
    new = python(code).split()
    assert sorted(new) == ["espnet_l0prune", "espnet_l0prune.autoload"]


def test_help_needs_neither_torch_nor_espnet():
    code = (
        "import sys; from espnet_l0prune.cli import main\n"
        "try: main(['cut', '--help'])\n"
        "except SystemExit: print('modules', *sys.modules)"
    )
    out = python(code)
    assert "example:" in out
    assert not {"torch", "espnet2"} & set(out.split("modules")[1].split())


def test_pythons_of_our_own_are_started_in_one_place():
    """Which keeps the current folder off their path."""
    starters = {"subprocess", "multiprocessing", "runpy"}
    for path in PACKAGE.rglob("*.py"):
        found = starters & imported(path)
        if path.name not in ("python.py", "doctor.py"):  # it has a result's type
            assert not found, path


def test_files_are_written_in_one_place():
    """Which has them whole or not at all; or in a folder that it keeps so."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text("utf-8")
        if path != PACKAGE / "core/files.py" and path.parent.name != "testing":
            assert "torch.save(" not in text, path
            assert ".mkdir(parents" not in text or path.name == "archive.py", path

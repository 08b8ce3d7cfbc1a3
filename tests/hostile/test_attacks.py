"""Every attack, by the real command: one line that says what is wrong, in no time.

Nothing runs, and nothing is left where it was not asked for.
"""

import contextlib
import re
import shutil
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from espnet_l0prune.cli import main
from espnet_l0prune.testing.experiments import save_experiment
from tests.attacks import ADOPT, INSPECT, KINDS, zipped

SECONDS = 60  # that a command may take; the slowest takes 3, on an idle machine
ATTACKS = [(kind, name) for kind in KINDS for name in KINDS[kind].attacks]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with an experiment and a zip that are as they should be."""
    folder = tmp_path_factory.mktemp("good")
    save_experiment(folder / "exp")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        zipped(lambda: None)()
    return folder


@pytest.fixture
def place(good, tmp_path, monkeypatch) -> Path:
    """A copy of it, to be worked in."""
    shutil.copytree(good, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    """A while that ends with an error, should it not end soon."""

    def late(*_):
        raise TimeoutError(f"it took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("kind", "name"), ATTACKS)
def test_an_attack(kind, name, place, capsys):
    attack = KINDS[kind].attacks[name]
    attack.damage()
    before = everything(place)
    capsys.readouterr()
    with in_time():
        code = main(list(attack.command))
    error = capsys.readouterr().err
    if attack.message:
        assert code == 1
        assert re.search(attack.message, error), error
    if code:
        assert code == 1
        told = [x for x in error.splitlines() if x.startswith("espnet-l0prune ")]
        assert len(told) == 1, error
        assert "Traceback" not in error
        assert len(error) < 3000
        assert everything(place) == before
    else:
        new = {path.split("/")[1] for path in everything(place) - before}
        assert new <= {"out", "page"}
    assert not list(place.rglob("evil"))


def test_what_is_as_it_should_be_is_taken(place, capsys):
    assert main([*INSPECT]) == 0
    shown = capsys.readouterr().out
    assert main([*ADOPT]) == 0
    assert main(["adopt", "model.zip", "--out", "zip"]) == 0
    # recompressed, and as DeepSpeed saves it
    state = torch.load("exp/model.pth")
    with zipfile.ZipFile("exp/model.pth") as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile("exp/model.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name, part in parts.items():
            new.writestr(name, part)
    capsys.readouterr()
    assert main([*INSPECT]) == 0
    assert capsys.readouterr().out == shown
    torch.save({"module": state, "ds_version": "0.1", "x": [{1}]}, "exp/model.pth")
    assert main([*INSPECT]) == 0
    assert capsys.readouterr().out == shown
    shutil.rmtree("out")
    assert main([*ADOPT]) == 0


def test_there_are_hundreds():
    assert len(ATTACKS) > 300

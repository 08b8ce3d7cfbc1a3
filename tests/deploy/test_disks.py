"""Every command that writes, on a disk without room: all of its result, or nothing."""

import shutil
from functools import partial

import pytest
from builders import save_experiment
from disks import content, largest_file, room, small_disk
from test_cut import save

from espnet_l0prune.cli import main

SIZES = (0, 2000, 30_000, 2**20)
COMMANDS = ("cut", "adopt", "adopt_zip", "export", "card", "report", "report_again")


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exp")
    save(folder / "gated")
    save_experiment(folder / "dense")
    packed = str(folder / "packed.zip")
    assert main(["export", "plugin", str(folder / "dense"), "--out", packed]) == 0
    return folder


def words_of(command, exp, folder) -> list[str]:
    """A command that writes into a folder, beside a good earlier result."""
    name, source, out, *more = {
        "cut": ("cut", exp / "gated", folder / "cut", "--force"),
        "adopt": ("adopt", exp / "dense", folder / "l0/new"),
        "adopt_zip": ("adopt", exp / "packed.zip", folder / "l0/new"),
        "export": ("export", exp / "dense", folder / "m.zip", "--force"),
        "card": ("card", exp / "dense", folder / "README.md", "--force"),
        "report": ("report", exp / "gated", folder / "new/page"),
        "report_again": ("report", exp / "dense", folder / "page"),
    }[command]
    form = ["plugin"] * (name == "export")
    return [name, *form, str(source), "--out", str(out), *more]


def prepare(exp, folder) -> None:
    for command in ("cut", "adopt", "export", "card"):
        assert main(words_of(command, exp, folder)) == 0
    (folder / "l0/new").rename(folder / "l0/good")
    assert main(["report", str(exp / "gated"), "--out", str(folder / "page")]) == 0


def all_or_nothing(command, exp, folder, tight, reason, capsys) -> None:
    """A command under each limit: it fails with the reason, and leaves things alone."""
    before, words, codes = content(folder), words_of(command, exp, folder), []
    for size in SIZES:
        capsys.readouterr()
        with tight(size):
            code = main(words)
        codes.append(code)
        if not code:
            break
        message = capsys.readouterr().err
        assert reason in message, (size, message)
        assert len(message.splitlines()) == 1, message
        assert content(folder) == before, size
    assert codes[0] == 1
    assert codes[-1] == 0
    assert not any(".part" in name or "/." in name for name in content(folder))
    for new in ("l0/new", "new"):
        shutil.rmtree(folder / new, ignore_errors=True)


@pytest.fixture(scope="module")
def written(exp, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    prepare(exp, folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_files_that_may_not_grow(command, exp, written, capsys):
    all_or_nothing(command, exp, written, largest_file, "File too large", capsys)


def test_a_full_disk(exp, written, tmp_path, capsys):
    with small_disk(tmp_path / "disk") as disk:
        shutil.copytree(written, disk, dirs_exist_ok=True)
        tight = partial(room, disk)
        for command in COMMANDS:
            all_or_nothing(command, exp, disk, tight, "No space left on device", capsys)

"""Every command that writes, on a disk without room: all of its result, or nothing."""

import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from espnet_l0prune.cli import main
from espnet_l0prune.testing.experiments import save_experiment
from tests.deploy.test_cut import save
from tests.disks import content, largest_file, room, small_disk

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
    shutil.copy(exp / "packed.zip", folder / "m.zip")
    for command in ("cut", "adopt", "card"):
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
        *_, message = capsys.readouterr().err.splitlines()
        assert message.startswith(f"espnet-l0prune {words[0]}: ")
        assert re.search(reason, message), (size, message)
        assert "expected" not in message  # the user did nothing wrong
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
        no_room = r"No space left on device|needs \d+ bytes, and \d+ are free"
        for command in COMMANDS:
            all_or_nothing(command, exp, disk, tight, no_room, capsys)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("command", ["cut", "export"])
def test_stopped_while_it_writes(command, name, exp, written):
    """By a person, a scheduler, a terminal that closes."""
    before, number = content(written), getattr(signal, name)
    if not (child := os.fork()):
        default = (
            signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler
        )
        signal.signal(number, default)
        torch.save = lambda *_: os.kill(os.getpid(), number)
        code = -1
        try:
            code = main(words_of(command, exp, written))
        except SystemExit as e:
            code = e.code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number
    assert content(written) == before


def test_somebody_was_faster(exp, tmp_path, capsys, monkeypatch):
    """What appears where a command is to write, while it works, is kept."""
    real = torch.save
    for command, end, name, message in (
        ("cut", -1, "cut/mine", "exists; expected a new folder"),
        ("cut", None, "cut/mine", "is no earlier cut"),
        ("export", -1, "m.zip", "exists; choose another --out"),
    ):
        folder = tmp_path / f"{command}{end}"
        mine = folder / name

        def late(*args, mine=mine):
            real(*args)
            mine.parent.mkdir(exist_ok=True)
            mine.write_text("mine")

        monkeypatch.setattr(torch, "save", late)
        assert main(words_of(command, exp, folder)[:end]) == 1  # without --force or with
        assert message in capsys.readouterr().err
        found = {n: d for n, d in content(folder).items() if d is not None}
        assert found == {name: b"mine"}


def test_force_takes_away_nothing_but_a_cut(exp, tmp_path, capsys):
    """Who fine-tuned into the folder of the cut keeps the result."""
    words = words_of("cut", exp, tmp_path)
    assert main(words) == 0
    (tmp_path / "cut/checkpoint.pth").write_text("mine")
    before = content(tmp_path)
    assert main(words) == 1
    assert "has checkpoint.pth beside an earlier cut" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_no_file_is_taken_for_one(exp, tmp_path, capsys):
    for command in ("card", "export"):
        words = words_of(command, exp, tmp_path)
        pipe = Path(words[words.index("--out") + 1])
        os.mkfifo(pipe)
        assert main(words) == 1
        assert "is no file; expected the name of one" in capsys.readouterr().err
        assert pipe.is_fifo()

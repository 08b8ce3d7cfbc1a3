"""Whole or not there: on full disks, at limits, interrupted and killed at any line."""

import errno
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from espnet_l0prune.core import files
from espnet_l0prune.core.files import (
    beside,
    check_file,
    claimed,
    new_folder,
    replace,
    replace_all,
    save,
)
from tests.disks import content, largest_file, room, small_disk

STATE = {"a": torch.zeros(300, 300), "b": torch.ones(7)}


def free():
    """Whatever is there may be replaced."""


@pytest.mark.parametrize("size", [0, 100, 700, 1000, 100_000, 360_000])
def test_torch_tells_of_a_limit_in_the_systems_words(size, tmp_path):
    with largest_file(size), pytest.raises(OSError, match=r"too large: .*a\.pth") as e:
        save(STATE, tmp_path / "a.pth")
    assert e.value.errno == errno.EFBIG
    save(STATE, tmp_path / "a.pth")
    again = torch.load(tmp_path / "a.pth", weights_only=True)
    assert torch.equal(again["a"], STATE["a"])


def test_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        replace(disk / "a", lambda part: part.write_text("first"))
        before = content(disk)
        for size in (0, 4096, 200_000):
            for write in (partial(save, STATE), lambda p: p.write_bytes(bytes(10**6))):
                with room(disk, size), pytest.raises(OSError, match=r"left on .*/a") as e:
                    replace(disk / "a", write)
                assert e.value.errno == errno.ENOSPC
                assert content(disk) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(NotADirectoryError, match="/dev/full/a"):
        replace(Path("/dev/full/a"), partial(save, STATE))
    with pytest.raises(AttributeError, match="local object"):
        replace(tmp_path / "a.pth", partial(save, {"a": lambda: 0}))
    assert content(tmp_path) == {}


def test_only_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in (tmp_path / "pipe", tmp_path / "folder", "/dev/null"):
        with pytest.raises(ValueError, match="is no file; expected the name of one"):
            replace(tmp_path / name, lambda part: part.write_text("new"))
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="exists; choose another --out, or give"):
        check_file(tmp_path / "a")
    check_file(tmp_path / "a", force=True)
    assert sorted(content(tmp_path)) == ["a", "folder", "pipe"]


def test_somebody_was_faster(tmp_path):
    """What appears while we write is kept, but for `force`."""

    def write(part):
        part.write_text("ours")
        (tmp_path / "a").write_text("theirs")

    with pytest.raises(ValueError, match="exists; choose another"):
        replace(tmp_path / "a", write, force=False)
    assert content(tmp_path) == {"a": b"theirs"}
    claim = claimed(tmp_path / "a")
    with pytest.raises(ValueError, match="exists; expected a new folder"):
        claim.__enter__()
    out = tmp_path / "b"

    def fill():
        with new_folder(out, nobody) as part:
            (part / "x").write_text("ours")
            out.mkdir()

    def nobody():
        if out.exists():
            raise ValueError("somebody")

    with pytest.raises(ValueError, match="somebody"):
        fill()
    assert content(tmp_path) == {"a": b"theirs", "b": None}


def test_folders_that_were_made_for_nothing_go(tmp_path):
    (tmp_path / "mine").mkdir()
    out = tmp_path / "mine/a/b/c"
    for place in (beside(out), claimed(out), new_folder(out, free)):
        with pytest.raises(KeyError), place:
            raise KeyError
    with pytest.raises(KeyError):
        replace(out, lambda part: {}["a"])
    assert content(tmp_path) == {"mine": None}
    with claimed(out):
        (out / "x").write_text("")
    replace(tmp_path / "d/e", lambda part: part.write_text(""))
    assert {"mine/a/b/c/x", "d/e"} < {*content(tmp_path)}


def test_what_a_kill_left_is_no_obstacle(tmp_path):
    (tmp_path / "a.part").symlink_to("b")
    replace(tmp_path / "a", lambda part: part.write_text("new"))
    assert content(tmp_path) == {"a": b"new"}


def write_files(folder):
    texts = {folder / "a": "new", folder / "b": "new"}
    replace_all({path: partial(Path.write_text, data=t) for path, t in texts.items()})


def write_folder(folder):
    with new_folder(folder / "out", free) as part:
        (part / "x").write_text("new")
        (part / "y").write_text("new")


OLD = {"a": b"old", "b": b"old", "out": None, "out/x": b"old", "out/z": b"old"}
NEW = {"out": None, "out/x": b"new", "out/y": b"new"}


def prepare(folder: Path) -> None:
    (folder / "out").mkdir(parents=True)
    for name, text in OLD.items():
        if text is not None:
            (folder / name).write_bytes(text)


def run_until(line: int, stop, write, folder: Path) -> bool:
    """Call `stop` at a line of files.py, counted as they are run; whether it came."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        if frame.f_code.co_filename != files.__file__:
            return None
        left -= event == "line"
        if event == "line" and left == 0:
            stop()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        write(folder)
    finally:
        sys.settrace(before)
    return left <= 0


def is_old_or_new(found: dict[str, bytes | None]) -> bool:
    """Whether nothing is lost, and nothing is there in part."""
    inside = {name: data for name, data in found.items() if name.startswith("out")}
    whole = inside in ({n: d for n, d in OLD.items() if n.startswith("out")}, NEW)
    return whole and {found["a"], found["b"]} <= {b"old", b"new"}


@pytest.mark.parametrize("write", [write_files, write_folder])
def test_interrupted_at_any_line(write, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    for line in range(1, 1000):
        folder = tmp_path / str(line)
        prepare(folder)
        try:
            come = run_until(line, interrupt, write, folder)
        except KeyboardInterrupt:
            come = True
        found = content(folder)
        if any(folder.glob("out.*.old")):  # its place is taken; it was about to go
            assert found["out/x"] == b"new"
            found = {n: d for n, d in found.items() if n in OLD | NEW}
        assert is_old_or_new(found), (line, found)
        assert len(found) == len(OLD), (line, found)
        if not come:
            break
    assert line > 20
    assert found != OLD


@pytest.mark.parametrize("write", [write_files, write_folder])
def test_killed_at_any_line(write, tmp_path):
    """The earlier result is where it was, or beside under its name; a next run works."""
    for line in range(1, 1000):
        folder = tmp_path / str(line)
        prepare(folder)
        if not (child := os.fork()):
            run_until(line, lambda: os._exit(9), write, folder)
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        kept = [*folder.glob("out.*.old")]
        if kept and not (folder / "out").exists():
            kept[0].rename(folder / "out")
        found = {n: d for n, d in content(folder).items() if n in OLD | NEW}
        assert is_old_or_new(found), (line, found)
        write(folder)
        if not killed:
            break
    assert line > 20

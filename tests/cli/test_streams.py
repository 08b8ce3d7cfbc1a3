"""Where the answer goes: pipes that are closed, full devices, no stream at all."""

import os
import subprocess
import sys

import pytest

from espnet_l0prune.cli import main
from espnet_l0prune.testing.experiments import save_experiment

PROGRAM = [sys.executable, "-m", "espnet_l0prune"]
QUICK = [["completion", "bash"], ["completion", "bash", "--json"], ["cut", "--help"]]
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")


def run(words: list[str], redirection: str = "", **more) -> subprocess.CompletedProcess:
    """A command in a shell, with its streams as the shell's syntax says."""
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    return subprocess.run([*shell, *PROGRAM, *words], capture_output=True, **more)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", QUICK)
def test_a_pipe_that_is_closed(words, unbuffered):
    mine, theirs = os.pipe()
    os.close(mine)
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [*PROGRAM, *words]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, env=env)
    os.close(theirs)
    assert done.returncode == 141
    assert done.stderr == b""


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", QUICK)
def test_a_full_device(words, unbuffered):
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = run(words, ">/dev/full", env=env)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("espnet-l0prune: the answer cannot be written: ")
    assert "No space left on device" in line


@needs_full
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_nobody_reads_the_errors(redirection):
    """Nor are they taken for an answer."""
    for words, code in (
        (["completion", "bash"], 0),
        (["nonsense"], 2),
    ):
        done = run(words, redirection)
        assert done.returncode == code, words
        assert bool(done.stdout) is (code == 0), words


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_streams_that_are_not_there(closed):
    """The next file that is opened must not be taken for one."""
    for words, code in ((["completion", "bash"], 0), (["--help"], 0), (["cut"], 2)):
        done = run(words, closed)
        assert done.returncode == code, words
        assert b"Traceback" not in done.stderr
        assert done.stdout == b""


def forked(words: list[str], **files: int) -> int:
    """A command in a copy of this process, which has imported ESPnet; its exit code.

    Args:
        files: descriptors for stdout and stderr, which are in ASCII there
    """
    if not (child := os.fork()):
        for descriptor, name in enumerate(("stdout", "stderr"), start=1):
            os.dup2(files.get(name, descriptor), descriptor)
            errors = "strict" if name == "stdout" else "backslashreplace"
            stream = os.fdopen(descriptor, "w", encoding="ascii", errors=errors)
            setattr(sys, name, stream)
        code = -1
        try:
            code = main(words)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_table_to_a_pipe_that_is_closed(tmp_path):
    save_experiment(tmp_path / "exp")
    mine, theirs = os.pipe()
    os.close(mine)
    assert forked(["inspect", str(tmp_path / "exp")], stdout=theirs) == 141
    os.close(theirs)


@needs_full
def test_an_error_that_cannot_be_said(tmp_path):
    """Nor is it said where the answer should be."""
    full = os.open("/dev/full", os.O_WRONLY)
    seen = os.open(tmp_path / "seen", os.O_WRONLY | os.O_CREAT)
    words = ["inspect", str(tmp_path / "none"), "--json"]
    assert forked(words, stdout=seen, stderr=full) == 1
    assert (tmp_path / "seen").read_bytes() == b""


def test_names_that_no_terminal_can_show(tmp_path):
    """What it cannot encode has a number instead, in the answer and in an error."""
    folder = tmp_path / "模型"
    save_experiment(folder)
    out, err = (
        os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT) for name in ("out", "err")
    )
    assert forked(["inspect", str(folder)], stdout=out, stderr=err) == 0
    assert "\\u6a21\\u578b/model.pth" in (tmp_path / "out").read_text()
    assert forked(["inspect", f"{folder}\udcff"], stdout=out, stderr=err) == 1
    assert "\\u6a21\\u578b\\udcff" in (tmp_path / "err").read_text()
    os.close(out)
    os.close(err)

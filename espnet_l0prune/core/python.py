"""Code is run in another Python process, which imports nothing from the current folder.

A folder may hold anybody's `torch.py`, and `python -c "import torch"` would run it. With
`-P` it would not, but only Python 3.11 and later have this option. With `-I` it would not
either, but `-I` also ignores PYTHONPATH.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

SAFE_PATH = "import sys; sys.path[:] = filter(None, sys.path)\n"


def run_python(
    code: str,
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run code and wait for it to end.

    Args:
        code: the code to run
        arguments: they become its sys.argv[1:]
        cwd: its current folder; None for ours
        env: its environment; None for ours
        log: takes all that it writes, while it runs; None to return it in the end
    """
    return subprocess.run(
        [sys.executable, "-c", SAFE_PATH + code, *arguments],
        cwd=cwd,
        env=env,
        stdout=log or subprocess.PIPE,
        stderr=subprocess.STDOUT if log else subprocess.PIPE,
        text=True,
        errors="replace",
    )


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a failed Python wrote to stderr: the error."""
    return (result.stderr.strip().splitlines() or ["no message"])[-1]

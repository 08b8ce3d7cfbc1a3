"""Code is run in another Python process, which imports nothing from the current folder.

A folder may hold anybody's `torch.py`, and `python -c "import torch"` would run it. With
`-P` it would not, but only Python 3.11 and later have this option. With `-I` it would not
either, but `-I` also ignores PYTHONPATH.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SAFE_PATH = "import sys; sys.path[:] = filter(None, sys.path)\n"


def run_python(
    code: str,
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run code and wait for it to end; `arguments` become its sys.argv[1:]."""
    command = [sys.executable, "-c", SAFE_PATH + code, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, errors="replace"
    )


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a failed Python wrote to stderr: the error."""
    return (result.stderr.strip().splitlines() or ["no message"])[-1]

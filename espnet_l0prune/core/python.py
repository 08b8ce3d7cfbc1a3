"""Code in a Python of its own, which imports nothing out of the current folder.

A folder may hold a `torch.py` of anybody's; `python -c` would run it. `python -P` would
not, but from Python 3.11 on only; `-I` would not either, and leave PYTHONPATH out too.
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
    """Run code, and wait for it; `arguments` are its sys.argv[1:]."""
    command = [sys.executable, "-c", SAFE_PATH + code, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, errors="replace"
    )


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """What a Python that failed said in the end: the error, below the trace."""
    return (result.stderr.strip().splitlines() or ["no message"])[-1]

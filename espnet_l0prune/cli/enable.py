"""This is the command `espnet-l0prune enable`."""

import argparse
import sysconfig
from pathlib import Path

from espnet_l0prune.cli.command import Answer, Command


def autoload_file() -> Path:
    """Return the file that this environment's Python runs at its start."""
    return Path(sysconfig.get_path("purelib")) / "espnet_l0prune.pth"


def run(args: argparse.Namespace) -> Answer:
    """Put the file that registers us at Python's start into this environment."""
    from espnet_l0prune.autoload import PTH_LINE
    from espnet_l0prune.core.files import replace

    file = autoload_file()
    replace(file, lambda part: part.write_text(PTH_LINE))
    return Answer({"enabled": file}, [f"enabled: {file}"])


COMMAND = Command(
    "register with ESPnet at Python's start (for editable installs)",
    "enable",
    run,
)

"""This is the command `espnet-l0prune disable`."""

import argparse

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.enable import autoload_file


def run(args: argparse.Namespace) -> Answer:
    """Remove the file that registers us at Python's start."""
    file = autoload_file()
    file.unlink(missing_ok=True)
    line = f"disabled: {file} is gone; `import espnet_l0prune` still registers"
    return Answer({"disabled": file}, [line])


COMMAND = Command(
    "undo enable",
    "disable",
    run,
)

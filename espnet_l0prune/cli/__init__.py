"""The command line: one file a command, named in `parser.COMMANDS`."""

from espnet_l0prune.cli.program import main

__all__ = ["main"]

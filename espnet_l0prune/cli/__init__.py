"""The command line has one file for each command, named in `parser.COMMANDS`."""

from espnet_l0prune.cli.program import main

__all__ = ["main"]

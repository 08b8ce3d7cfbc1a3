"""A command has a text, an example, options and a function that runs it."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass
class Answer:
    """An `Answer` is what a command found or did.

    Attributes:
        data: what `--json` prints, for machines
        shown: lines and rich's tables, for people
        code: the exit code
    """

    data: object
    shown: Sequence[object] = ()
    code: int = 0


@dataclass(frozen=True)
class Command:
    """A `Command` is one of the things that the command line does.

    torch and ESPnet take seconds to import, and `doctor` may be asked to mend them. So a
    command's file imports neither, and its function imports what it needs.

    Attributes:
        text: what the command does, for `--help`
        example: an example of its use, without `espnet-l0prune`
        run: runs the command
        add_options: adds the command's own options to its parser
    """

    text: str
    example: str
    run: Callable[[argparse.Namespace], Answer]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None

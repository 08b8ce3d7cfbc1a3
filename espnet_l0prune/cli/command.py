"""What a command is."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass
class Answer:
    """What a command found or did.

    Attributes:
        data: for machines: what `--json` prints
        shown: for people: lines, or rich's tables
        code: the exit code
    """

    data: object
    shown: Sequence[object] = ()
    code: int = 0


@dataclass(frozen=True)
class Command:
    """One of the things that the command line does.

    torch and ESPnet take seconds to import, and may be what `doctor` is asked to mend: a
    file of a command imports neither, and its function imports what it needs.

    Attributes:
        text: what it does, for `--help`
        example: the words after `espnet-l0prune`
        run: does it
        add_options: adds the command's own options to its parser
    """

    text: str
    example: str
    run: Callable[[argparse.Namespace], Answer]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None

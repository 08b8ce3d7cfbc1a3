"""The parser has all commands and their options."""

import argparse

from espnet_l0prune import __version__
from espnet_l0prune.cli import (
    adopt,
    bench,
    card,
    completion,
    cut,
    disable,
    doctor,
    enable,
    export,
    inspect,
    probe,
    profile,
    report,
    schema,
    verify,
)
from espnet_l0prune.cli.command import Command

COMMANDS: dict[str, Command] = {
    "doctor": doctor.COMMAND,
    "inspect": inspect.COMMAND,
    "profile": profile.COMMAND,
    "probe": probe.COMMAND,
    "adopt": adopt.COMMAND,
    "cut": cut.COMMAND,
    "verify": verify.COMMAND,
    "bench": bench.COMMAND,
    "export": export.COMMAND,
    "card": card.COMMAND,
    "report": report.COMMAND,
    "schema": schema.COMMAND,
    "completion": completion.COMMAND,
    "enable": enable.COMMAND,
    "disable": disable.COMMAND,
}
DEBUG = "show the whole stack trace"


def get_parser() -> argparse.ArgumentParser:
    """Return the command line's parser, which sets `command` to a key of `COMMANDS`."""
    parser = argparse.ArgumentParser(
        prog="espnet-l0prune",
        description="Structured pruning of ESPnet's recognizers.",
        epilog="Exit codes: 0 done; 1 something to mend, with a message; 2 bad usage; "
        "130 interrupted; 141 nobody reads the answer any more.",
    )
    parser.set_defaults(parser=parser)  # `completion` reads it
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help=DEBUG)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print JSON, and only that")
    shared.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG
    )
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_options(
            subparsers.add_parser(
                name,
                help=command.text,
                description=command.text,
                epilog=f"example: espnet-l0prune {command.example}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
                parents=[shared],
            )
        )
    return parser

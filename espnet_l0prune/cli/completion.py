"""This is the command `espnet-l0prune completion`."""

import argparse

from espnet_l0prune.cli.command import Answer, Command


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `completion` to its parser."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def run(args: argparse.Namespace) -> Answer:
    """Print what completes these commands in a shell."""
    import shtab

    text = shtab.complete(args.parser, args.shell)
    return Answer({"shell": args.shell, "script": text}, [text])


COMMAND = Command(
    "print what completes these commands in a shell",
    "completion bash > ~/.local/share/bash-completion/completions/espnet-l0prune",
    run,
    add_options,
)

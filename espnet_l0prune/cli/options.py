"""Some options belong to several commands."""

import argparse
from pathlib import Path
from typing import Any

FOLDER = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


def add_path(
    parser: argparse.ArgumentParser, name: str, complete=FOLDER, **more: Any
) -> None:
    """Add an option that is a path, and tell shells how to complete it."""
    option: Any = parser.add_argument(name, type=Path, **more)
    option.complete = complete


def add_what_is_pruned(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that choose what can be pruned."""
    parser.add_argument(
        "--scope",
        choices=("frontend", "encoder", "model"),
        default="encoder",
        help="what is pruned; frontend is a self-supervised model",
    )
    parser.add_argument(
        "--units", default="default", help="default, paper, all, or kinds with commas"
    )


def units_of(args: argparse.Namespace) -> str | list[str]:
    """Return what --units says: a word, or kinds of units."""
    from espnet_l0prune.networks.units import WORDS

    return args.units if args.units in WORDS else args.units.split(",")


def add_card_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that write a model card."""
    parser.add_argument("--checkpoint", help="default: the experiment's average")
    parser.add_argument("--name", help="of the model in the zoo")
    parser.add_argument("--license", default="cc-by-4.0", help="as the zoo writes it")
    parser.add_argument("--language", default="noinfo", help="as the zoo writes it")
    parser.add_argument("--datasets", nargs="*", default=[], help="it was trained on")
    parser.add_argument("--force", action="store_true", help="replace the output")


def about_of(args: argparse.Namespace, name: str):
    """Return what the options say of a model, for its card.

    Args:
        args: the options, as parsed
        name: the model's name if the options have none
    """
    from espnet_l0prune.deploy.card import About

    return About(
        name=args.name or name,
        licence=args.license,
        language=args.language,
        datasets=tuple(args.datasets),
    )

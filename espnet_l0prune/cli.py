"""The command line of espnet-l0prune: parse, call, print.

Exit codes: 0 done; 1 something that the user can mend, said in one message, such as a
full disk, also where the answer was to be written; 2 a command line that is not
understood; 130 interrupted, 141 the reader of a pipe closed it, 129 and 143 hung up and
terminated: as shells have it. Without a standard output an answer goes nowhere.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from espnet_l0prune import __version__, commands
from espnet_l0prune.commands import say
from espnet_l0prune.core.ranges import RANGES

DEBUG = "show the whole stack trace"
RANGE = RANGES["command line"]
FOLDER = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/", "tcsh": "d"}
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


def _path(
    parser: argparse.ArgumentParser, name: str, complete=FOLDER, **more: Any
) -> None:
    """Add an option that is a path, and say to shells what completes it."""
    option: Any = parser.add_argument(name, type=Path, **more)
    option.complete = complete


def _card_options(parser: argparse.ArgumentParser) -> None:
    """Of what has a model card: what only the author of a model knows, among others."""
    parser.add_argument("--checkpoint", help="default: the experiment's average")
    parser.add_argument("--name", help="of the model in the zoo")
    parser.add_argument("--license", default="cc-by-4.0", help="as the zoo writes it")
    parser.add_argument("--language", default="noinfo", help="as the zoo writes it")
    parser.add_argument("--datasets", nargs="*", default=[], help="it was trained on")
    parser.add_argument("--force", action="store_true", help="replace the output")


def get_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="espnet-l0prune",
        description="Structured pruning of ESPnet's recognizers.",
        epilog="Exit codes: 0 done; 1 something to mend, with a message; 2 bad usage; "
        "130 interrupted; 141 nobody reads the answer any more.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help=DEBUG)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print JSON, and only that")
    shared.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG
    )

    def command(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example: espnet-l0prune {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[shared],
        )

    sub = command("doctor", "check the installation", "doctor")
    sub.add_argument(
        "--fix",
        action="store_true",
        help="move torchaudio's native libraries aside if they cannot load",
    )

    sub = command(
        "inspect", "print what is left of every module", "inspect exp/asr_pruned"
    )
    _path(sub, "experiment", help="folder with config.yaml")
    sub.add_argument("--checkpoint", help="default: latest.pth, or model.pth of a cut")

    sub = command(
        "adopt",
        "write what prunes and fine-tunes an experiment that was trained dense",
        "adopt exp/asr_conformer --out exp/asr_l0 --params 0.5 --macs 0.6",
    )
    _path(sub, "source", FILE, help="the experiment's folder, or a zip of the model zoo")
    _path(sub, "--out", required=True, help="folder to write")
    sub.add_argument("--checkpoint", help="default: the experiment's average")
    sub.add_argument(
        "--params",
        type=float,
        help=f"sparsity in parameters, {RANGE['--params']}; 0.5 if --macs is not given",
    )
    sub.add_argument(
        "--macs",
        type=float,
        help=f"sparsity in multiply-accumulates, {RANGE['--macs']}",
    )
    sub.add_argument(
        "--scope", choices=("encoder", "model"), default="encoder", help="what is pruned"
    )
    sub.add_argument(
        "--units", default="default", help="default, paper, all, or kinds with commas"
    )
    for name, what in (("--epochs", "pruning"), ("--finetune_epochs", "fine-tuning")):
        sub.add_argument(name, type=int, help=f"of the {what}, {RANGE[name]}")
    sub.add_argument(
        "--no_data",
        action="store_true",
        help="leave the training data out, for recipes that name it (asr.sh)",
    )

    sub = command(
        "cut",
        "cut the closed units out of a pruned experiment",
        "cut exp/asr_pruned --out exp/asr_cut",
    )
    _path(sub, "experiment", help="pruned to the end: gates frozen")
    _path(sub, "--out", required=True, help="folder to write")
    sub.add_argument("--checkpoint", default="latest.pth", help="default: latest.pth")
    sub.add_argument("--force", action="store_true", help="replace the output folder")

    sub = command(
        "verify",
        "check that a cut model computes what the pruned one does",
        "verify exp/asr_pruned exp/asr_cut",
    )
    _path(sub, "experiment", help="the pruned one")
    _path(sub, "cut", help="what was cut from it, before fine-tuning")
    sub.add_argument("--checkpoint", default="latest.pth", help="of the experiment")

    sub = command(
        "bench",
        "time the encoders of experiments, in turns, on one thread",
        "bench exp/asr_dense exp/asr_finetuned",
    )
    _path(sub, "experiments", nargs="+", help="the first one is what others are beside")
    sub.add_argument("--checkpoint", help="default: latest.pth, or model.pth of a cut")
    sub.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help=f"of audio, at once, {RANGE['--seconds']}",
    )
    sub.add_argument(
        "--rounds",
        type=int,
        default=5,
        help=f"the figure is the median, {RANGE['--rounds']}",
    )

    sub = command(
        "export",
        "pack a cut or fine-tuned model for the model zoo, with a model card",
        "export plugin exp/asr_finetuned --out model.zip --name me/model",
    )
    sub.add_argument(
        "form",
        choices=("plugin", "stock", "onnx"),
        help="plugin: small, needs this package; stock: plain ESPnet loads it, filled up "
        "with zeros where its configuration cannot say what was cut; onnx: onnxruntime "
        "runs encoder and decoder, with ESPnet and this package or without them",
    )
    _path(sub, "experiment", help="without gates")
    _path(sub, "--out", FILE, required=True, help="the zip to write")
    _card_options(sub)
    sub.add_argument("--int8", action="store_true", help="quantize onnx dynamically")

    sub = command(
        "card",
        "write the model card alone, as export does",
        "card exp/asr_finetuned --out README.md --name me/model",
    )
    _path(sub, "experiment", help="cut or fine-tuned")
    _path(sub, "--out", FILE, required=True, help="Markdown to write")
    _card_options(sub)

    sub = command(
        "report",
        "write a page of pictures and tables on experiments, also while they train",
        "report exp/asr_pruned exp/asr_finetuned --out report",
    )
    _path(sub, "experiments", nargs="+", help="folders, or folders of experiments")
    _path(sub, "--out", default=Path("report"), help="folder for index.html")

    command(
        "schema",
        "print a JSON schema of our options in a configuration, for editors",
        "schema > l0prune.schema.json",
    )
    sub = command(
        "completion",
        "print what completes these commands in a shell",
        "completion bash > ~/.local/share/bash-completion/completions/espnet-l0prune",
    )
    sub.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    command(
        "enable",
        "register with ESPnet at Python's start (for editable installs)",
        "enable",
    )
    command("disable", "undo enable", "disable")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code, whether or not somebody reads the answer."""
    _open_streams()
    try:
        with _stoppable():
            try:
                return _run(argv)
            finally:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough
        return 141
    except OSError as e:
        say(f"espnet-l0prune: the answer cannot be written: {e}")
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # or Python would try again at its end, with a trace
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> None:
    """Have all three standard streams open, on the null device where somebody closed one:
    the next file that is opened would be taken for it. What a terminal cannot encode is
    shown by its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """End by an exception where a scheduler ends us, or a terminal that closes, so that
    nothing half-written is left."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGTERM, signal.SIGHUP)
    taken = [n for n in signals if signal.getsignal(n) is signal.SIG_DFL]  # no nohup
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse a command line; print help here, since argparse passes over what fails."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            return get_parser().parse_args(argv)
    finally:
        print(text.getvalue(), end="")


def _run(argv: list[str] | None) -> int:
    args = _parse(argv)
    # whatever libraries print is not part of the answer
    aside = contextlib.redirect_stdout(sys.stderr) if args.json else None
    try:
        with aside or contextlib.nullcontext():
            answer = getattr(commands, args.command)(args)
    except (ValueError, OSError, RuntimeError, ImportError) as e:
        if args.debug:
            raise
        say(f"espnet-l0prune {args.command}: {e}")
        return 1
    if args.json:
        print(json.dumps(answer.data, indent=1, default=str))
    else:
        _show(answer.shown)
    return answer.code


def _show(parts: Sequence[object]) -> None:
    """Print lines as they are, and tables by rich; wide where it is no terminal."""
    for part in parts:
        if isinstance(part, str):
            print(part)
            continue
        from rich.console import Console

        width = None if sys.stdout.isatty() else 140
        console = Console(width=width, markup=False)
        sys.stdout.flush()  # rich has a way of its own with a closed pipe
        with console.capture() as table:
            console.print(part)
        print(table.get(), end="")


if __name__ == "__main__":
    sys.exit(main())

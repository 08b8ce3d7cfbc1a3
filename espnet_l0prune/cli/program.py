"""The command line of espnet-l0prune: parse, call, print.

The exit code is 0 if all went well; 1 for something that the user can mend, which one
message explains, such as a full disk, also where the answer was to be written; and 2 for
a command line that is not understood. As in shells, it is 130 after an interrupt, 141 if
the reader of a pipe closed it, and 129 or 143 after a hang-up or a termination. Without a
standard output an answer goes nowhere.
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

from espnet_l0prune.cli.parser import COMMANDS, get_parser
from espnet_l0prune.cli.progress import say


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code, even if its answer cannot be written."""
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
            except OSError:  # otherwise Python would try again at its end, with a trace
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> None:
    """Open all three standard streams, on the null device where one was closed.

    Otherwise the next file to be opened would take its place. Characters that a terminal
    cannot encode are shown by their numbers.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Turn the signals of a scheduler or a closing terminal into exceptions.

    Then nothing half-written is left.
    """

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
    """Parse a command line; print help here, as argparse ignores errors of printing."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            return get_parser().parse_args(argv)
    finally:
        print(text.getvalue(), end="")


def _run(argv: list[str] | None) -> int:
    args = _parse(argv)
    # what libraries print is not part of the answer
    aside = contextlib.redirect_stdout(sys.stderr) if args.json else None
    try:
        with aside or contextlib.nullcontext():
            answer = COMMANDS[args.command].run(args)
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
    """Print lines as they are and tables by rich, which are wide without a terminal."""
    for part in parts:
        if isinstance(part, str):
            print(part)
            continue
        from rich.console import Console

        width = None if sys.stdout.isatty() else 140
        console = Console(width=width, markup=False)
        sys.stdout.flush()  # rich would treat a closed pipe in its own way
        with console.capture() as table:
            console.print(part)
        print(table.get(), end="")

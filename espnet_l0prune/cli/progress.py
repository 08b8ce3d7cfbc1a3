"""Commands say what they are doing while they work."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

Track = Callable[[Sequence], Iterable]


@contextlib.contextmanager
def busy(text: str) -> Iterator[Track]:
    """Show on a terminal what takes its time, and for how long it has.

    It yields a function that iterates over a sequence, and has the terminal show how much
    time is left.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=20),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    hidden = not console.is_terminal
    with progress.Progress(
        *columns, console=console, transient=True, disable=hidden
    ) as shown:
        task = shown.add_task(text, total=None)
        yield lambda items: shown.track(items, total=len(items), task_id=task)


def say(text: str) -> None:
    """Print text for people to stderr, if that is open."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def steps(command: str) -> Iterator[Callable[[str], None]]:
    """Say what a long command does, with a line for each step.

    It yields a function that is called with the name of each step. The lines are also
    written where stderr is a file; on a terminal the time runs below them.
    """
    begun = time.monotonic()
    with busy(command):
        yield lambda text: say(f"{command}, {time.monotonic() - begun:.0f} s: {text}")

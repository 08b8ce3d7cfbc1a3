"""Long work tells its caller what it is doing."""

from collections.abc import Callable
from pathlib import Path

import humanfriendly

Step = Callable[[str], object]  # is called with the name of each step as it begins
RATE = 11e6  # bytes of weights per second that adopt and export process on one thread


def quiet(text: str) -> None:
    """Ignore the name of a step."""


def how_long(file: Path) -> str:
    """Return how many bytes of weights there are to process, and how long that takes.

    Args:
        file: the file that holds the weights
    """
    size = file.stat().st_size if file.exists() else 0
    return f"{size / 1e6:,.0f} MB of weights, about {1 + size / RATE:,.0f} s in all"


def how_far(done: int, total: int, item: str, seconds: float) -> str:
    """Return which of some items is next, and about how long it and the rest will take.

    Args:
        done: number of items that are done
        total: number of items
        item: what an item is
        seconds: how long those that are done took
    """
    text = f"{item} {done + 1} of {total}"
    if not done:
        return text
    rest = round(seconds / done * (total - done))
    return f"{text}, about {humanfriendly.format_timespan(rest, max_units=2)} left"

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


def how_far(item: str, done: int, total: int, seconds: float) -> str:
    """Return what is being done, and about how long it and all that follows will take.

    Args:
        item: what is being done
        done: number of equal parts of the whole work that are done, at least 1
        total: number of parts
        seconds: how long those that are done took
    """
    left = round(seconds / done * (total - done))
    return f"{item}, about {humanfriendly.format_timespan(left, max_units=2)} left"

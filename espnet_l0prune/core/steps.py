"""Long work tells its caller what it is doing."""

from collections.abc import Callable
from pathlib import Path

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

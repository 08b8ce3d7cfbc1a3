"""What long work tells of itself while it is done."""

from collections.abc import Callable
from pathlib import Path

Step = Callable[[str], object]  # is called with what begins now
RATE = 11e6  # bytes of weights a second, as adopt and export took them on one thread


def quiet(text: str) -> None:
    """Tell nobody."""


def how_long(file: Path) -> str:
    """How much there is to do in all, and how long that takes.

    Args:
        file: the weights
    """
    size = file.stat().st_size if file.exists() else 0
    return f"{size / 1e6:,.0f} MB of weights, about {1 + size / RATE:,.0f} s in all"

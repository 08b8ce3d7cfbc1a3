"""What long work tells of itself while it is done."""

from collections.abc import Callable
from pathlib import Path

Step = Callable[[str], object]  # is called with what begins now


def quiet(text: str) -> None:
    """Tell nobody."""


def how_long(file: Path, rate: float) -> str:
    """How much there is to do in all, and how long that takes.

    Args:
        file: the weights
        rate: bytes a second, as it was measured
    """
    size = file.stat().st_size if file.exists() else 0
    return f"{size / 1e6:,.0f} MB of weights, about {1 + size / rate:,.0f} s in all"

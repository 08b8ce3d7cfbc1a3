"""The costs that a budget can be about: one entry of a table for each."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """What a cost is asked about: one tensor of a network, or what one module computes
    outside of its layers.

    Attributes:
        values: parameters
        products: multiply-accumulates in the forward that was watched
    """

    values: int
    products: float


@dataclass(frozen=True)
class Cost:
    """Something of which pruning leaves less.

    Attributes:
        label: its name in tables and pictures
        amount: what a piece adds to it, with all units open
    """

    label: str
    amount: Callable[[Piece], float]


COSTS = {
    "params": Cost("parameters", lambda piece: piece.values),
    "macs": Cost("MACs", lambda piece: piece.products),
}

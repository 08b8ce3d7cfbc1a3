"""This table holds the costs that a budget can be about, one entry for each."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A `Piece` is what causes a cost: a tensor, or a computation without weights.

    Attributes:
        values: number of parameters
        products: number of multiply-accumulates in the forward that was traced
    """

    values: int
    products: float


@dataclass(frozen=True)
class Cost:
    """A `Cost` is a quantity that pruning reduces.

    Attributes:
        label: its name in tables and pictures
        amount: returns what a piece adds to the cost with all units open; None for a cost
            that is measured, by a `Profile`, and not counted
    """

    label: str
    amount: Callable[[Piece], float] | None


TIME = "time"
COSTS = {
    "params": Cost("parameters", lambda piece: piece.values),
    "macs": Cost("MACs", lambda piece: piece.products),
    TIME: Cost("time", None),
}


def counted() -> dict[str, Callable[[Piece], float]]:
    """Return how each cost is counted that is not measured, by its name in `COSTS`."""
    amounts = ((name, cost.amount) for name, cost in COSTS.items())
    return {name: amount for name, amount in amounts if amount is not None}

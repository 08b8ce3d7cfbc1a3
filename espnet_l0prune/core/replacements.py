"""A constant stands in for a branch that has no units left."""

from torch import Tensor, nn


class Constant(nn.Module):
    """A `Constant` replaces a branch without units: it returns its last layer's bias.

    Args:
        value: the bias, (size,), or None for a branch that returns zeros
        size: number of features of the output
        sizes: how many units are left of each kind that the branch had
    """

    def __init__(self, value: Tensor | None, size: int, sizes: dict[str, int]):
        super().__init__()
        self.value = None if value is None else nn.Parameter(value.detach().clone())
        self.size, self.sizes = size, dict(sizes)

    def forward(self, x: Tensor | tuple, *args: Tensor, **kwargs) -> Tensor:
        """Return (batch, time, size) for an input (batch, time, ...)."""
        if isinstance(x, tuple):
            x = x[0]
        shape = (*x.shape[:-1], self.size)
        return x.new_zeros(shape) if self.value is None else self.value.expand(shape)

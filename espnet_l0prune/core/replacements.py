"""What stands where nothing is left."""

from torch import Tensor, nn


class Constant(nn.Module):
    """A branch whose units are all cut: it gives the bias of its last layer.

    Args:
        value: (size,), or None for a branch that gives zeros and has no parameter
        size: features of the output
        sizes: the kinds of units that the branch had, and how many are left
    """

    def __init__(self, value: Tensor | None, size: int, sizes: dict[str, int]):
        super().__init__()
        self.value = None if value is None else nn.Parameter(value.detach().clone())
        self.size, self.sizes = size, dict(sizes)

    def forward(self, x: Tensor | tuple, *args: Tensor, **kwargs) -> Tensor:
        """Give (batch, time, size) for an input (batch, time, ...); ignore the rest."""
        if isinstance(x, tuple):
            x = x[0]
        shape = (*x.shape[:-1], self.size)
        return x.new_zeros(shape) if self.value is None else self.value.expand(shape)

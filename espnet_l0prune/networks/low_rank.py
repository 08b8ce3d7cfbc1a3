"""Layers that are products of two smaller ones."""

from torch import Tensor, nn


def can_factor(layer: nn.Module | None) -> bool:
    """Whether a layer is one matrix."""
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups == 1
    )


class LowRank(nn.Module):
    """Two layers in place of one: to `rank` channels, and from there.

    Of a convolution, the first has its kernel, the second a kernel of one. It shows the
    weight and the bias of the layer that it stands for.

    Args:
        layer: whose sizes it takes, but not the weights; see `can_factor`
        rank: number of channels between the two
    """

    def __init__(self, layer: nn.Module, rank: int):
        super().__init__()
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            self.first = nn.Linear(layer.in_features, rank, bias=False)
            self.second = nn.Linear(rank, layer.out_features, bias=bias)
            return
        self.first = type(layer)(
            layer.in_channels,
            rank,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            bias=False,
        )
        self.second = type(layer)(rank, layer.out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    @property
    def weight(self) -> Tensor:
        """The product of both, in the shape of the one."""
        product = self.second.weight.flatten(1) @ self.first.weight.flatten(1)
        return product.view(-1, *self.first.weight.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        return self.second.bias

    @property
    def out_channels(self) -> int:
        return self.second.out_channels

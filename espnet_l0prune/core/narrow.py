"""What a cut of the residual width leaves behind on layers, for good.

The residual stream has `size` features, of which a narrow layer has a few: a layer that
reads the stream gathers them from it, one that writes to it scatters them back.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from espnet_l0prune.core.hooks import feature_dim


@dataclass(eq=False)
class Narrow(ABC):
    """A hook of a layer that has a part of the stream.

    Attributes:
        index: the places of its features in the stream, (n,)
    """

    index: Tensor

    @abstractmethod
    def attach_(self, layer: nn.Module) -> None:
        """Register on the layer."""

    def _index(self, x: Tensor) -> Tensor:
        if self.index.device != x.device:
            self.index = self.index.to(x.device)
        return self.index


class GatherInput(Narrow):
    """Forward pre-hook: of the stream (..., size), the features that the layer reads."""

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self)

    def __call__(self, layer: nn.Module, args: tuple) -> tuple:
        return (args[0].index_select(-1, self._index(args[0])), *args[1:])


class GatherOutput(Narrow):
    """Forward hook on a front end: the features that the stream has left."""

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self(layer, args, output[0]), *output[1:])
        return output.index_select(-1, self._index(output))


@dataclass(eq=False)
class ScatterOutput(Narrow):
    """Forward hook: put the features back in their places, with 0 elsewhere.

    Attributes:
        size: features of the stream
    """

    size: int

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        dim, shape = feature_dim(layer), list(output.shape)
        shape[dim] = self.size
        return output.new_zeros(shape).index_copy(dim, self._index(output), output)


def features_of(layer: nn.Module) -> Tensor | None:
    """The places in the stream of what a narrow layer has, (n,); None of one that has
    all of it."""
    hooks = (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
    return next((hook.index for hook in hooks if isinstance(hook, Narrow)), None)

"""These hooks stay on layers that read or write only a part of the residual stream.

The residual stream has `size` features. After a cut of the width, a layer has only some
of them. A layer that reads the stream gathers these features from it; a layer that writes
to the stream scatters them back.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from espnet_l0prune.core.hooks import feature_dim


@dataclass(eq=False)
class Narrow(ABC):
    """A `Narrow` is a hook on a layer that has only a part of the stream.

    Attributes:
        index: the places of the layer's features in the stream, (n,)
    """

    index: Tensor

    @abstractmethod
    def attach_(self, layer: nn.Module) -> None:
        """Register this hook on a layer."""

    def _index(self, x: Tensor) -> Tensor:
        if self.index.device != x.device:
            self.index = self.index.to(x.device)
        return self.index


class GatherInput(Narrow):
    """This forward pre-hook gathers what the layer reads from the stream (..., size)."""

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self)

    def __call__(self, layer: nn.Module, args: tuple) -> tuple:
        return (args[0].index_select(-1, self._index(args[0])), *args[1:])


class GatherOutput(Narrow):
    """This forward hook on a front end gathers the features that the stream still has."""

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self(layer, args, output[0]), *output[1:])
        return output.index_select(-1, self._index(output))


@dataclass(eq=False)
class ScatterOutput(Narrow):
    """This forward hook puts a layer's features back in their places, with 0 elsewhere.

    Attributes:
        size: number of features in the stream
    """

    size: int

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        dim, shape = feature_dim(layer), list(output.shape)
        shape[dim] = self.size
        return output.new_zeros(shape).index_copy(dim, self._index(output), output)


def features_of(layer: nn.Module) -> Tensor | None:
    """Return the places of a narrow layer's features in the stream, (n,).

    It is None for a layer that has all of them.
    """
    hooks = (*layer._forward_pre_hooks.values(), *layer._forward_hooks.values())
    return next((hook.index for hook in hooks if isinstance(hook, Narrow)), None)

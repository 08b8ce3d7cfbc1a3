"""Gates act on layers through hooks, so that no forward of ESPnet's is copied.

The hooks are plain objects that hold the gate, so they survive deepcopy and pickle.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from espnet_l0prune.core.gates import HardConcrete


def feature_dim(layer: nn.Module) -> int:
    """Return the dimension of a layer's features, which input and output share."""
    return 1 if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d)) else -1


def spread(values: Tensor, inner: int, outer: int) -> Tensor:
    """Give each feature the value of its unit: (n,) to (outer * n * inner,).

    A unit owns `inner` neighbouring features, in each of `outer` repetitions.
    """
    if inner > 1:
        values = values.repeat_interleave(inner)
    return values.repeat(outer) if outer > 1 else values


class GateHook(ABC):
    """A `GateHook` is a hook that is removed together with the gates."""

    @abstractmethod
    def attach_(self, layer: nn.Module) -> None:
        """Register this hook on a layer."""


@dataclass(frozen=True, eq=False)
class Scale(GateHook):
    """A `Scale` multiplies features by their units' gates.

    Attributes:
        gate: the gate of n units
        inner, outer: see `spread`
    """

    gate: HardConcrete
    inner: int = 1
    outer: int = 1

    def scaled(self, x: Tensor, dim: int) -> Tensor:
        """Return x times the gates along a dimension of size outer * n * inner."""
        z = self.gate()
        if z.numel() > 1:
            z = spread(z, self.inner, self.outer)
            shape = [1] * x.dim()
            shape[dim] = -1
            z = z.view(shape)
        return x * z.to(x.dtype)


class ScaleInput(Scale):
    """This hook gates what a linear layer or a convolution reads, by scaling its weight.

    Since W (z x) = (W z) x, the work grows with the weight and not with the activations,
    and the gates' gradient needs no copy of these. During a forward the scaled weight
    hides the parameter.
    """

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self)
        OwnWeight().attach_(layer)

    def __call__(self, layer: nn.Module, args: tuple) -> None:
        layer.__dict__["weight"] = self.scaled(layer.weight, 1)


class OwnWeight(GateHook):
    """This hook restores a layer's own weight before and after a forward.

    It does so even if the forward fails.
    """

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self, prepend=True)
        layer.register_forward_hook(self, always_call=True)

    def __call__(self, layer: nn.Module, *_) -> None:
        layer.__dict__.pop("weight", None)


class ScaleOutput(Scale):
    """This forward hook gates what a layer returns."""

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.scaled(output, feature_dim(layer))


@dataclass(frozen=True, eq=False)
class MaskInput(GateHook):
    """This forward pre-hook hides the features (..., n) of closed units from a layer."""

    gate: HardConcrete

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self)

    def __call__(self, layer: nn.Module, args: tuple) -> tuple:
        x = args[0]
        return (x.masked_fill(self.gate() <= 0, 0), *args[1:])


@dataclass(frozen=True, eq=False)
class SurvivorNorm(GateHook):
    """This hook gives a LayerNorm over n units the open units' statistics.

    The outputs of open units are then what the LayerNorm returns once the closed ones are
    cut. The outputs of closed units are 0. A unit with several gates is open if all of
    them are.

    Attributes:
        gates: the units' gates, of n units each
        dim: the dimension of the units, in what the norm takes and returns
    """

    gates: list[HardConcrete]
    dim: int = -1

    def attach_(self, layer: nn.Module) -> None:
        for hook in layer._forward_hooks.values():
            if isinstance(hook, SurvivorNorm):
                hook.gates.extend(self.gates)
                return
        layer.register_forward_hook(self)

    def __call__(self, layer: nn.LayerNorm, args: tuple, output: Tensor) -> Tensor:
        opened = torch.stack([gate() > 0 for gate in self.gates]).all(0)
        if bool(opened.all()):
            return output
        x = args[0].to(layer.weight.dtype)  # autocast may give half precision
        x = x.movedim(self.dim, -1)
        mask = opened.to(x.dtype)
        n = mask.sum().clamp(min=1)
        centred = (x - (x * mask).sum(-1, keepdim=True) / n) * mask
        variance = centred.square().sum(-1, keepdim=True) / n
        normed = centred * torch.rsqrt(variance + layer.eps)
        return (normed * layer.weight + layer.bias * mask).movedim(-1, self.dim)


class Residual(Protocol):
    """A `Residual` knows how a kind of block mixes its input and its output."""

    @classmethod
    def mix(cls, z: Tensor, args: tuple, kwargs: dict, output: tuple) -> tuple:
        """Return y = x + z (block(x) - x) for a gate z, (1,), in the output's form."""


@dataclass(frozen=True, eq=False)
class ScaleResidual(GateHook):
    """This forward hook gates a whole block: y = x + z (block(x) - x).

    Attributes:
        gate: a vector of one gate
        residual: the kind of block
    """

    gate: HardConcrete
    residual: type[Residual]

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self, with_kwargs=True)

    def __call__(
        self, layer: nn.Module, args: tuple, kwargs: dict, output: tuple
    ) -> tuple:
        return self.residual.mix(self.gate(), args, kwargs, output)


def remove_gates_(network: nn.Module) -> None:
    """Remove every gate of a network, and every hook through which a gate acts."""
    for module in list(network.modules()):
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(hook, GateHook)]:
                del hooks[key]
        for name, child in list(module.named_children()):
            if isinstance(child, HardConcrete):
                delattr(module, name)

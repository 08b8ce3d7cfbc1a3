"""How gates act on layers: as hooks, so that no forward of ESPnet's is copied.

The hooks are plain objects that hold the gate: they survive deepcopy and pickle.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from espnet_l0prune.core.gates import HardConcrete


def feature_dim(layer: nn.Module) -> int:
    """The dimension of a layer's features, in its input and in its output."""
    return 1 if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.BatchNorm1d)) else -1


def spread(values: Tensor, inner: int, outer: int) -> Tensor:
    """Give each feature the value of its unit: (n,) to (outer * n * inner,).

    A unit owns `inner` neighbouring features, in each of `outer` repetitions.
    """
    if inner > 1:
        values = values.repeat_interleave(inner)
    return values.repeat(outer) if outer > 1 else values


class GateHook(ABC):
    """A hook that goes when the gates go."""

    @abstractmethod
    def attach_(self, layer: nn.Module) -> None:
        """Register on the layer."""


@dataclass(frozen=True, eq=False)
class Scale(GateHook):
    """Multiply features by their units' gates.

    Attributes:
        gate: of n units
        inner, outer: see `spread`
    """

    gate: HardConcrete
    inner: int = 1
    outer: int = 1

    def scaled(self, x: Tensor, dim: int) -> Tensor:
        """x times the gates, along its dimension of size outer * n * inner."""
        z = self.gate()
        if z.numel() > 1:
            z = spread(z, self.inner, self.outer)
            shape = [1] * x.dim()
            shape[dim] = -1
            z = z.view(shape)
        return x * z.to(x.dtype)


class ScaleInput(Scale):
    """Gate what a linear layer or a convolution consumes, by way of its weight.

    W (z x) = (W z) x: it costs as much as the weight is large, not the activations, and
    the gates' gradient needs no copy of them. For the length of a forward the scaled
    weight stands in front of the parameter.
    """

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self)
        OwnWeight().attach_(layer)

    def __call__(self, layer: nn.Module, args: tuple) -> None:
        layer.__dict__["weight"] = self.scaled(layer.weight, 1)


class OwnWeight(GateHook):
    """Before and after a forward, also one that failed, a layer has its own weight."""

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self, prepend=True)
        layer.register_forward_hook(self, always_call=True)

    def __call__(self, layer: nn.Module, *_) -> None:
        layer.__dict__.pop("weight", None)


class ScaleOutput(Scale):
    """Forward hook: gate what the layer gives."""

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self.scaled(output, feature_dim(layer))


@dataclass(frozen=True, eq=False)
class MaskInput(GateHook):
    """Forward pre-hook: hide the features (..., n) of closed units from the layer."""

    gate: HardConcrete

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_pre_hook(self)

    def __call__(self, layer: nn.Module, args: tuple) -> tuple:
        x = args[0]
        return (x.masked_fill(self.gate() <= 0, 0), *args[1:])


@dataclass(frozen=True, eq=False)
class SurvivorNorm(GateHook):
    """Forward hook on a LayerNorm over n units, (..., n): statistics over the open ones.

    The output of closed units is 0. It is what LayerNorm gives once they are cut. A
    unit with several gates is open where all of them are.
    """

    gates: list[HardConcrete]

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
        x = args[0].to(layer.weight.dtype)  # as under autocast
        mask = opened.to(x.dtype)
        n = mask.sum().clamp(min=1)
        centred = (x - (x * mask).sum(-1, keepdim=True) / n) * mask
        variance = centred.square().sum(-1, keepdim=True) / n
        normed = centred * torch.rsqrt(variance + layer.eps)
        return normed * layer.weight + layer.bias * mask


class Residual(Protocol):
    """How the input and the output of a block are mixed."""

    @classmethod
    def mix(cls, z: Tensor, args: tuple, kwargs: dict, output: tuple) -> tuple:
        """y = x + z (block(x) - x), for a gate z: (1,), in the form of the output."""


@dataclass(frozen=True, eq=False)
class ScaleResidual(GateHook):
    """Forward hook on a whole block: y = x + z (block(x) - x).

    Attributes:
        gate: one gate
        residual: of such a block
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
    """Remove every gate, and every hook through which one acts."""
    for module in list(network.modules()):
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(hook, GateHook)]:
                del hooks[key]
        for name, child in list(module.named_children()):
            if isinstance(child, HardConcrete):
                delattr(module, name)

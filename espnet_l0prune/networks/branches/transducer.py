"""The branches of the blocks of ESPnet's task asr_transducer.

Its convolutions also return what they keep of a chunk of frames for the next one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import functional_call

from espnet_l0prune.core.claims import Claim, output_claims
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.hooks import GateHook, SurvivorNorm
from espnet_l0prune.core.replacements import Constant
from espnet_l0prune.networks.branches.attention import AttentionSite
from espnet_l0prune.networks.branches.cgmlp import ConvolutionalGatingSite
from espnet_l0prune.networks.branches.convolution import ConvolutionSite
from espnet_l0prune.networks.espnet_modules import (
    ConvolutionalSpatialGatingUnit,
    RMSNorm,
    TransducerAttention,
    TransducerConvolution,
)


class CachedConstant(Constant):
    """A `CachedConstant` is called as a convolution is; nothing has to be cached."""

    kernel_size = 1  # ESPnet caches one frame fewer

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None = None, cache: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return (batch, time, size), and the cache as it is."""
        return super().forward(x), cache


class TransducerAttentionSite(AttentionSite):
    """A `TransducerAttentionSite` is the attention of asr_transducer.

    If its scores are `simplified`, the positions alone give one number for each head.
    """

    module_types = (TransducerAttention,)
    heads_name = "num_heads"

    @property
    def is_simplified(self) -> bool:
        """Return whether no query is multiplied by positions."""
        return not hasattr(self.module, "pos_bias_u")

    @property
    def _positions(self) -> nn.Module | None:
        return None if self.is_simplified else super()._positions

    def unit_claims(self) -> Iterator[Claim]:
        yield from super().unit_claims()
        if self.is_simplified:
            yield from output_claims(self.module.linear_pos, self.kinds[1])

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        yield from super().dependents()
        if self.is_simplified:
            yield self.module.linear_pos, self.kinds

    def scale_queries_(self, masks: Mapping[str, Tensor]) -> float:
        scale = super().scale_queries_(masks)
        if scale != 1 and self.is_simplified:  # these are divided by the root, too
            for parameter in self.module.linear_pos.parameters():
                parameter.mul_(scale)
        return scale


class TransducerConvolutionSite(ConvolutionSite):
    """A `TransducerConvolutionSite` is the convolution of asr_transducer."""

    module_types = (TransducerConvolution,)
    constant_type = CachedConstant


class SpatialGatingSite(ConvolutionalGatingSite):
    """A `SpatialGatingSite` is a cgMLP whose layers are the block's own.

    The part that gates stands for it; once it is emptied, the layers around it go too.
    """

    module_types = (ConvolutionalSpatialGatingUnit,)
    constant_type = CachedConstant

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        return (self.block.module.channel_proj1[0],)

    @property
    def gating(self) -> nn.Module:
        return self.module

    @property
    def linear(self) -> None:
        return None

    @property
    def consumer(self) -> nn.Module:
        return self.block.module.channel_proj2

    def why_not(self, kind: str) -> str | None:
        norm = self.gating.norm
        if kind == "cgmlp_channels" and isinstance(norm, RMSNorm) and norm.partial:
            return "its norm, with conv_mod_norm_partial, reads the first channels alone"
        return super().why_not(kind)

    def unit_claims(self) -> Iterator[Claim]:
        yield from super().unit_claims()
        if isinstance(self.gating.norm, RMSNorm):
            yield Claim(self.gating.norm, "scale", 0, "cgmlp_channels")

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        yield from super().dependents()
        yield self.block.module.channel_proj1, self.kinds[:1]
        yield self.gating.norm, self.kinds

    def hooks(
        self, kind: str, gate: HardConcrete
    ) -> Iterator[tuple[nn.Module, GateHook]]:
        for layer, hook in super().hooks(kind, gate):
            other = isinstance(hook, SurvivorNorm) and not isinstance(layer, nn.LayerNorm)
            yield layer, NormOfOpen(gate) if other else hook

    def resize_(self, masks: Mapping[str, Tensor]) -> None:
        if isinstance(self.gating.norm, RMSNorm):
            self.gating.norm.normalized_shape = len(self.gating.norm.scale)

    def finish_(self, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
        super().finish_(kept)
        if isinstance(self.module, Constant):
            self.block.module.channel_proj1 = nn.Identity()
            self.block.module.channel_proj2 = nn.Identity()


@dataclass(frozen=True, eq=False)
class NormOfOpen(GateHook):
    """This forward hook gives asr_transducer's own norms the open units' statistics.

    It is for them what `SurvivorNorm` is for a LayerNorm.
    """

    gate: HardConcrete

    def attach_(self, layer: nn.Module) -> None:
        layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        opened = self.gate() > 0
        if bool(opened.all()):
            return output
        index = opened.nonzero().flatten()
        if not len(index):
            return output.new_zeros(output.shape)
        few = args[0].index_select(-1, index)
        if isinstance(layer, RMSNorm):
            scale = {"scale": layer.scale.index_select(0, index)}
            few = functional_call(RMSNorm(len(index), layer.eps), scale, (few,))
        else:  # the others have one parameter for all features
            few = layer.forward(few)
        return few.new_zeros(output.shape).index_copy(-1, index, few)

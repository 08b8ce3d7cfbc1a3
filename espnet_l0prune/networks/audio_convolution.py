"""The convolutions over the audio, of self-supervised models, can be pruned."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from espnet_l0prune.core.claims import Claim, output_claims
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.hooks import GateHook, SurvivorNorm
from espnet_l0prune.networks.espnet_modules import Dim1LayerNorm, TransposedLayerNorm
from espnet_l0prune.networks.frontend import FrontendSite

NORMS = (nn.LayerNorm, nn.GroupNorm, Dim1LayerNorm)
CHANNELS_FIRST = (TransposedLayerNorm, Dim1LayerNorm)  # norms of (batch, n, time)


class AudioConvolutionSite(FrontendSite):
    """An `AudioConvolutionSite` has the channels of one convolution over the audio.

    A norm that spans the channels takes its statistics over the open ones.

    Args:
        name: path of the convolution in the front end
        extractor: all convolutions
        conv: the convolution
        norms: the norms of its channels
        consumer: the next convolution, or the layer that makes the stream of the channels
    """

    def __init__(
        self,
        name: str,
        extractor: nn.Module,
        conv: nn.Module,
        norms: list[nn.Module],
        consumer: nn.Module,
    ):
        super().__init__(name, extractor, conv, consumer)
        self.norms = norms

    def claims(self) -> Iterator[Claim]:
        for norm in self.norms:
            yield from output_claims(norm, "frontend_channels")
        yield from super().claims()

    def hooks(
        self, kind: str, gate: HardConcrete
    ) -> Iterator[tuple[nn.Module, GateHook]]:
        yield from super().hooks(kind, gate)
        for norm in self.norms:
            if not isinstance(norm, nn.GroupNorm):  # it has a group for each channel
                dim = 1 if isinstance(norm, CHANNELS_FIRST) else -1
                yield norm, SurvivorNorm([gate], dim)

    def finish_(self, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
        for norm in self.norms:
            if isinstance(norm, Dim1LayerNorm):
                norm.normalized_shape = norm.weight.numel()

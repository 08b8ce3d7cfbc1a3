"""The convolution branch is the Conformer's ConvolutionModule."""

from collections.abc import Iterator

from torch import nn

from espnet_l0prune.core.claims import Claim, input_claims, output_claims
from espnet_l0prune.networks.branch import BranchSite
from espnet_l0prune.networks.espnet_modules import ConvolutionModule


class ConvolutionSite(BranchSite):
    """A `ConvolutionSite` has the channels of the depthwise convolution.

    With a channel go the two inputs of the GLU from which it comes, and its entry in the
    norm.
    """

    label = "convolution"
    module_types: tuple[type[nn.Module], ...] = (ConvolutionModule,)
    kinds = ("conv_modules", "conv_channels")
    fine = ("conv_channels",)

    @property
    def sizes(self) -> dict[str, int]:
        channels = self.module.depthwise_conv.out_channels
        return {"conv_modules": 1, "conv_channels": channels}

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        return (self.module.pointwise_conv1,)

    @property
    def consumer(self) -> nn.Module:
        return self.module.pointwise_conv2

    def unit_claims(self) -> Iterator[Claim]:
        conv = self.module
        yield from output_claims(conv.pointwise_conv1, "conv_channels", outer=2)
        yield from output_claims(conv.depthwise_conv, "conv_channels")
        yield from output_claims(conv.norm, "conv_channels")
        yield from input_claims(conv.pointwise_conv2, "conv_channels", folds=True)

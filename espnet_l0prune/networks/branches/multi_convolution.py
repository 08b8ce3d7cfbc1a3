"""The convolution branch of the Multi-Convformer has several kernels at once."""

from collections.abc import Iterator

from torch import nn

from espnet_l0prune.core.claims import Claim
from espnet_l0prune.networks.branch import BranchSite
from espnet_l0prune.networks.espnet_modules import MultiConvolutionalGatingMLP


class MultiConvolutionSite(BranchSite):
    """A `MultiConvolutionSite` goes as a whole (Prabhu et al. 2024, arXiv 2407.03718).

    Its channels stay: the kernels share them out by their number.
    """

    label = "convolution"
    module_types = (MultiConvolutionalGatingMLP,)
    kinds = ("conv_modules",)

    @property
    def sizes(self) -> dict[str, int]:
        return {"conv_modules": 1}

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        return (self.module.channel_proj1[0],)

    @property
    def consumer(self) -> nn.Module:
        return self.module.channel_proj2

    def unit_claims(self) -> Iterator[Claim]:
        return iter(())

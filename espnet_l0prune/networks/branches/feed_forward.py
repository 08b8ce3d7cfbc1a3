"""The feed-forward branch has two layers, each linear or a convolution."""

from collections.abc import Iterator

from torch import nn

from espnet_l0prune.core.claims import Claim, input_claims, output_claims
from espnet_l0prune.networks.branch import BranchSite
from espnet_l0prune.networks.espnet_modules import (
    Conv1dLinear,
    MultiLayeredConv1d,
    PositionwiseFeedForward,
)


class FeedForwardSite(BranchSite):
    """A `FeedForwardSite` has the channels between the two layers."""

    label = "feed_forward"
    module_types: tuple[type[nn.Module], ...] = (
        PositionwiseFeedForward,
        MultiLayeredConv1d,
        Conv1dLinear,
    )
    kinds = ("ffn_modules", "ffn_channels")
    fine = alike = ("ffn_channels",)

    @property
    def sizes(self) -> dict[str, int]:
        return {"ffn_modules": 1, "ffn_channels": self.first.weight.size(0)}

    @property
    def first(self) -> nn.Module:
        """Return the first layer, which makes the channels."""
        return self.module.w_1

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        return (self.first,)

    @property
    def consumer(self) -> nn.Module:
        return self.module.w_2

    def unit_claims(self) -> Iterator[Claim]:
        yield from output_claims(self.first, "ffn_channels")
        yield from input_claims(self.consumer, "ffn_channels", folds=True)

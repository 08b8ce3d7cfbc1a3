"""The cgMLP branch is the ConvolutionalGatingMLP of the Branchformers."""

from collections.abc import Iterator

from torch import nn

from espnet_l0prune.core.claims import Claim, input_claims, output_claims
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.hooks import GateHook, MaskInput, SurvivorNorm
from espnet_l0prune.networks.branch import BranchSite
from espnet_l0prune.networks.espnet_modules import ConvolutionalGatingMLP


class ConvolutionalGatingSite(BranchSite):
    """A `ConvolutionalGatingSite` has the channels of a cgMLP after its gating.

    Before the gating, each channel has a gated and a gating half. The norm spans the
    gating halves, so it takes its statistics over the open ones.
    """

    label = "cgmlp"
    module_types: tuple[type[nn.Module], ...] = (ConvolutionalGatingMLP,)
    kinds = ("cgmlp_modules", "cgmlp_channels")
    fine = alike = ("cgmlp_channels",)

    @property
    def sizes(self) -> dict[str, int]:
        return {"cgmlp_modules": 1, "cgmlp_channels": self.consumer.in_features}

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        return (self.module.channel_proj1[0],)

    @property
    def gating(self) -> nn.Module:
        """Return the part that multiplies each channel by its gating half."""
        return self.module.csgu

    @property
    def linear(self) -> nn.Module | None:
        """Return the layer that mixes the gating halves, if there is one."""
        return self.gating.linear

    @property
    def consumer(self) -> nn.Module:
        return self.module.channel_proj2

    def unit_claims(self) -> Iterator[Claim]:
        kind = "cgmlp_channels"
        yield from output_claims(self.readers[0], kind, outer=2)
        yield from output_claims(self.gating.norm, kind)
        yield from output_claims(self.gating.conv, kind)
        if self.linear is not None:
            yield from output_claims(self.linear, kind)
            yield from input_claims(self.linear, kind)
        yield from input_claims(self.consumer, kind, folds=True)

    def hooks(
        self, kind: str, gate: HardConcrete
    ) -> Iterator[tuple[nn.Module, GateHook]]:
        yield from super().hooks(kind, gate)
        if kind == "cgmlp_channels":
            yield self.gating.norm, SurvivorNorm([gate])
            if self.linear is not None:
                yield self.linear, MaskInput(gate)

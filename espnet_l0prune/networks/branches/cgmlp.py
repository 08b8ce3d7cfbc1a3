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
    module_types = (ConvolutionalGatingMLP,)
    kinds = ("cgmlp_modules", "cgmlp_channels")
    fine = alike = ("cgmlp_channels",)

    @property
    def sizes(self) -> dict[str, int]:
        channels = self.module.channel_proj2.in_features
        return {"cgmlp_modules": 1, "cgmlp_channels": channels}

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        return (self.module.channel_proj1[0],)

    @property
    def consumer(self) -> nn.Module:
        return self.module.channel_proj2

    def unit_claims(self) -> Iterator[Claim]:
        gating, kind = self.module.csgu, "cgmlp_channels"
        yield from output_claims(self.module.channel_proj1[0], kind, outer=2)
        yield from output_claims(gating.norm, kind)
        yield from output_claims(gating.conv, kind)
        if gating.linear is not None:
            yield from output_claims(gating.linear, kind)
            yield from input_claims(gating.linear, kind)
        yield from input_claims(self.module.channel_proj2, kind, folds=True)

    def hooks(
        self, kind: str, gate: HardConcrete
    ) -> Iterator[tuple[nn.Module, GateHook]]:
        yield from super().hooks(kind, gate)
        if kind == "cgmlp_channels":
            yield self.module.csgu.norm, SurvivorNorm([gate])
            if self.module.csgu.linear is not None:
                yield self.module.csgu.linear, MaskInput(gate)

"""The convolutional subsampling in front of the blocks can be pruned."""

from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from espnet_l0prune.core.claims import Claim, input_claims, output_claims
from espnet_l0prune.core.gates import ScoreOf, log_alpha_of
from espnet_l0prune.core.sites import Site
from espnet_l0prune.networks.espnet_modules import (
    SUBSAMPLINGS,
    Conv2dSubsamplingWOPosEnc,
    ConvInput,
)

FRONT_ENDS = (*SUBSAMPLINGS, Conv2dSubsamplingWOPosEnc, ConvInput)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)  # whose channels can be cut
CHANNELWISE = (nn.ReLU, nn.MaxPool2d)  # which keep 0 and the order of channels


def last_linear(embed: nn.Module) -> nn.Linear | None:
    """Return the layer that maps a subsampling's features to the residual stream.

    A `ConvInput` in front of a block of convolutions has none.
    """
    if isinstance(embed, ConvInput):
        return embed.output
    return embed.out[0] if isinstance(embed.out, nn.Sequential) else embed.out


class FrontendSite(Site):
    """A `FrontendSite` has the channels of one convolution, of which at least one stays.

    Args:
        name: path of the convolution in the encoder
        embed: the subsampling
        conv: the convolution
        consumer: the next convolution, or the linear layer, whose inputs are ordered by
            channel
    """

    kinds = ("frontend_channels",)
    fine = ("frontend_channels",)
    never_empty = ("frontend_channels",)

    def __init__(self, name: str, embed: nn.Module, conv: nn.Module, consumer: nn.Module):
        self.name, self.embed, self.conv, self.consumer = name, embed, conv, consumer

    @classmethod
    def find(cls, network: nn.Module) -> Iterator["FrontendSite"]:
        """Yield the sites of an encoder's subsampling; none if it, or a layer of it, has
        an unknown type."""
        embed = getattr(network, "embed", None)
        if isinstance(embed, FRONT_ENDS):
            convs = {
                f"embed.conv.{i}": layer
                for i, layer in enumerate(embed.conv)
                if not isinstance(layer, CHANNELWISE)
            }
            linear = last_linear(embed)
            layers = [*convs.values(), *([] if linear is None else [linear])]
            if all(isinstance(layer, LAYERS) for layer in layers):
                # without a linear layer, the last channels are the stream, and stay
                for name, (conv, consumer) in zip(convs, pairwise(layers), strict=False):
                    yield cls(name, embed, conv, consumer)

    @property
    def module(self) -> nn.Module:
        return self.conv

    def part(self, per: str) -> tuple[str, nn.Module] | None:
        return "frontend", self.embed

    @property
    def sizes(self) -> dict[str, int]:
        return {"frontend_channels": self.conv.out_channels}

    def claims(self) -> Iterator[Claim]:
        kind = "frontend_channels"
        yield from output_claims(self.conv, kind)
        inner = self.consumer.weight.size(1) // self.conv.out_channels
        yield from input_claims(self.consumer, kind, inner=inner, folds=True)

    def protected(self, kind: str, score_of: ScoreOf = log_alpha_of) -> int | None:
        return int(score_of(self.gates[kind]).argmax())

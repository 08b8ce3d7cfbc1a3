"""The Transformer decoder's block."""

import torch
from torch import Tensor

from espnet_l0prune.networks.block import Block, Place, Skip
from espnet_l0prune.networks.branches import (
    FEED_FORWARD,
    SELF_ATTENTION,
    SOURCE_ATTENTION,
)
from espnet_l0prune.networks.espnet_modules import DecoderLayer


class DecoderBlock(Block):
    """Branches one after the other, of which the second reads the encoder's output; with
    a `cache` it computes the last token alone."""

    module_type = DecoderLayer
    layout = {
        "self_attn": Place("norm1", "attention", SELF_ATTENTION),
        "src_attn": Place("norm2", "source att.", SOURCE_ATTENTION),
        "feed_forward": Place("norm3", "FFN", FEED_FORWARD),
    }

    @classmethod
    def mix(cls, z: Tensor, args: tuple, kwargs: dict, output: tuple) -> tuple:
        mixed, *rest = super().mix(z, args, kwargs, output)
        if kwargs.get("cache") is not None:  # what was decoded before is mixed already
            mixed = torch.cat([kwargs["cache"], mixed[:, -1:]], dim=1)
        return (mixed, *rest)

    def skip(self) -> Skip:
        return DecoderSkip(type(self))


class DecoderSkip(Skip):
    """A decoder's block that was cut away."""

    def forward_partially_AR(self, *args, **kwargs) -> tuple:
        """The decoding of ESPnet's partially autoregressive models."""
        return self(*args, **kwargs)

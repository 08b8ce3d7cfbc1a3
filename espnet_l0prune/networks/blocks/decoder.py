"""This is the Transformer decoder's block."""

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
    """A `DecoderBlock` has branches in sequence, the second of which reads the encoder.

    If it is called with a `cache`, it only computes the last token.
    """

    module_type = DecoderLayer
    layout = {
        "self_attn": Place("norm1", "attention", SELF_ATTENTION),
        "src_attn": Place("norm2", "source att.", SOURCE_ATTENTION),
        "feed_forward": Place("norm3", "FFN", FEED_FORWARD),
    }

    @classmethod
    def mix(cls, z: Tensor, args: tuple, kwargs: dict, output: tuple) -> tuple:
        mixed, *rest = super().mix(z, args, kwargs, output)
        if kwargs.get("cache") is not None:  # the cache was mixed before
            mixed = torch.cat([kwargs["cache"], mixed[:, -1:]], dim=1)
        return (mixed, *rest)

    def skip(self) -> Skip:
        return DecoderSkip(type(self))


class DecoderSkip(Skip):
    """A `DecoderSkip` takes the place of a decoder's block that was cut away."""

    def forward_partially_AR(self, *args, **kwargs) -> tuple:
        """Return the input, as ESPnet's partially autoregressive decoding expects it."""
        return self(*args, **kwargs)

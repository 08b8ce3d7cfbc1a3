"""These are the blocks of streaming encoders (Tsunoo et al. 2019, arXiv 1910.07204).

They read some frames of the utterance at a time, between two context vectors: one that
the same layer made of the frames before, and one for the frames to come.
"""

from torch import Tensor

from espnet_l0prune.networks.block import Block, Place
from espnet_l0prune.networks.blocks.conformer import ConformerBlock
from espnet_l0prune.networks.branches import CONVOLUTION, FEED_FORWARD, SELF_ATTENTION
from espnet_l0prune.networks.espnet_modules import (
    ContextualConformerLayer,
    ContextualTransformerLayer,
)


class ContextualTransformerBlock(Block):
    """A `ContextualTransformerBlock` has two branches in sequence.

    The stream is (batch, blocks of frames, frames + 2, size), or (batch, time, size) if
    the utterance is no longer than a block of frames.
    """

    module_type = ContextualTransformerLayer
    layout = {
        "self_attn": Place("norm1", "attention", SELF_ATTENTION),
        "feed_forward": Place("norm2", "FFN", FEED_FORWARD),
    }
    hands_on = "context vectors"

    def run(self, args: tuple, kwargs: dict, features: Tensor | None) -> Tensor:
        # the layer writes the context vectors into what it is given
        copies = (a.clone() if isinstance(a, Tensor) else a for a in args)
        return super().run(tuple(copies), kwargs, features)


class ContextualConformerBlock(ContextualTransformerBlock):
    """A `ContextualConformerBlock` has branches as a Conformer's block has.

    See `ContextualTransformerBlock` for the stream.
    """

    module_type = ContextualConformerLayer
    layout = {
        "feed_forward_macaron": Place("norm_ff_macaron", "FFN 1", FEED_FORWARD),
        "self_attn": Place("norm1", "attention", SELF_ATTENTION),
        "conv_module": Place("norm_conv", "conv", CONVOLUTION),
        "feed_forward": Place("norm2", "FFN", FEED_FORWARD),
    }
    scaled = ConformerBlock.scaled
    final_norm = ConformerBlock.final_norm

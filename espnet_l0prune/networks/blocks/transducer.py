"""These are the blocks of ESPnet's task asr_transducer.

They take the stream, (batch, time, size), positions and a mask, which is true where there
is padding; and return the stream, the mask and the positions.
"""

from torch import nn

from espnet_l0prune.networks.block import Block, Place
from espnet_l0prune.networks.branches import (
    CONVOLUTION,
    FEED_FORWARD,
    GATING,
    SELF_ATTENTION,
)
from espnet_l0prune.networks.espnet_modules import (
    TransducerBranchformer,
    TransducerConformer,
    TransducerConv1d,
    TransducerEBranchformer,
)


class TransducerBlock(Block):
    """A `TransducerBlock` has what these blocks share.

    A chunk of frames is read by a method of its own, which hooks on the block do not see.
    """

    hands_on = "caches from chunk to chunk"

    def factor(self, name: str) -> float:
        return self.module.feed_forward_scale if name in self.scaled else 1.0


class TransducerConformerBlock(TransducerBlock):
    """A `TransducerConformerBlock` has branches as a Conformer's block has."""

    module_type = TransducerConformer
    layout = {
        "feed_forward_macaron": Place("norm_macaron", "FFN 1", FEED_FORWARD),
        "self_att": Place("norm_self_att", "attention", SELF_ATTENTION),
        "conv_mod": Place("norm_conv", "conv", CONVOLUTION),
        "feed_forward": Place("norm_feed_forward", "FFN", FEED_FORWARD),
    }
    scaled = ("feed_forward_macaron", "feed_forward")


class TransducerBranchformerBlock(TransducerBlock):
    """A `TransducerBranchformerBlock` has two branches side by side, which are merged."""

    module_type = TransducerBranchformer
    layout = {
        "self_att": Place("norm_self_att", "attention", SELF_ATTENTION),
        "conv_mod": Place("norm_mlp", "cgMLP", GATING),
    }

    @property
    def merge(self) -> nn.Module:
        return self.module.merge_proj

    def is_merged(self, name: str) -> bool:
        return name in ("self_att", "conv_mod")


class TransducerEBranchformerBlock(TransducerBranchformerBlock):
    """A `TransducerEBranchformerBlock` has them between feed-forward modules."""

    module_type = TransducerEBranchformer
    layout = {
        "feed_forward_macaron": Place("norm_feed_forward_macaron", "FFN 1", FEED_FORWARD),
        **TransducerBranchformerBlock.layout,
        "feed_forward": Place("norm_feed_forward", "FFN", FEED_FORWARD),
    }
    scaled = TransducerConformerBlock.scaled


class TransducerConv1dBlock(TransducerBlock):
    """A `TransducerConv1dBlock` is one convolution of the stream, which stays whole."""

    module_type = TransducerConv1d

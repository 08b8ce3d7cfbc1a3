"""This is the Conformer's block."""

from torch import nn

from espnet_l0prune.networks.block import Block, Place
from espnet_l0prune.networks.branches import CONVOLUTION, FEED_FORWARD, SELF_ATTENTION
from espnet_l0prune.networks.espnet_modules import ConformerLayer


class ConformerBlock(Block):
    """A `ConformerBlock` has branches in sequence, and a norm after a convolution.

    The final norm exists only in blocks with a convolution.
    """

    module_type = ConformerLayer
    layout = {
        "feed_forward_macaron": Place("norm_ff_macaron", "FFN 1", FEED_FORWARD),
        "self_attn": Place("norm_mha", "attention", SELF_ATTENTION),
        "conv_module": Place("norm_conv", "conv", CONVOLUTION),
        "feed_forward": Place("norm_ff", "FFN", FEED_FORWARD),
    }
    scaled = ("feed_forward_macaron", "feed_forward")

    @property
    def final_norm(self) -> nn.Module | None:
        return getattr(self.module, "norm_final", None)

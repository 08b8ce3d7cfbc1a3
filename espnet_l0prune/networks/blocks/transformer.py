"""This is the Transformer encoder's block."""

from espnet_l0prune.networks.block import Block, Place
from espnet_l0prune.networks.branches import FEED_FORWARD, SELF_ATTENTION
from espnet_l0prune.networks.espnet_modules import TransformerLayer


class TransformerBlock(Block):
    """A `TransformerBlock` has two branches in sequence."""

    module_type = TransformerLayer
    layout = {
        "self_attn": Place("norm1", "attention", SELF_ATTENTION),
        "feed_forward": Place("norm2", "FFN", FEED_FORWARD),
    }

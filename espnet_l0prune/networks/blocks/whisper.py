"""This is Whisper's block, of its encoder and of its decoder."""

from torch import Tensor

from espnet_l0prune.networks.block import Block, Place
from espnet_l0prune.networks.branches import (
    SELF_ATTENTION,
    SOURCE_ATTENTION,
    WHISPER_FEED_FORWARD,
)
from espnet_l0prune.networks.espnet_modules import WhisperLayer


class WhisperBlock(Block):
    """A `WhisperBlock` has branches in sequence; only a decoder's reads the encoder.

    It takes and returns the stream alone.
    """

    module_type = WhisperLayer
    layout = {
        "attn": Place("attn_ln", "attention", SELF_ATTENTION),
        "cross_attn": Place("cross_attn_ln", "source att.", SOURCE_ATTENTION),
        "mlp": Place("mlp_ln", "FFN", WHISPER_FEED_FORWARD),
    }

    @classmethod
    def identity(cls, args: tuple, kwargs: dict) -> Tensor:
        return args[0]

    @classmethod
    def mix(cls, z: Tensor, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        (mixed,) = super().mix(z, args[:1], kwargs, (output,))
        return mixed

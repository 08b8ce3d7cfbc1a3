"""Here is what the streaming encoders have beside their blocks.

They cut the stream into blocks of frames that overlap: each has `block_size` frames, of
which the last `look_ahead` and those before the `hop_size` ones in front of them are
context alone.
"""

import torch
from torch import Tensor, nn

from espnet_l0prune.networks.espnet_modules import (
    ContextualBlockConformerEncoder,
    ContextualBlockTransformerEncoder,
)


def is_streaming(network: nn.Module) -> bool:
    """Return whether a network is an encoder of ESPnet's that can read as one speaks."""
    kinds = ContextualBlockConformerEncoder, ContextualBlockTransformerEncoder
    return isinstance(network, kinds)


def in_time(network: nn.Module, hidden: Tensor) -> Tensor:
    """Return hidden states of one of an encoder's layers in the order of time.

    Of the overlapping blocks of frames of a streaming encoder these are the frames that
    its output consists of, and padding after them.

    Args:
        network: ESPnet's encoder
        hidden: (batch, time, size); or of a streaming encoder, if the utterance is longer
            than a block of frames, (batch, blocks, 1 + block_size + 1, size), where the
            first and the last are context vectors

    Returns:
        (batch, time, size)
    """
    if hidden.dim() == 3:
        return hidden
    first = 1 + network.block_size - network.look_ahead - network.hop_size
    last = first + network.hop_size
    return torch.cat(
        [
            hidden[:, 0, 1:first],
            hidden[:, :, first:last].flatten(1, 2),
            hidden[:, -1, last:-1],
        ],
        dim=1,
    )

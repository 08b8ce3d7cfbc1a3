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
    Conv2dSubsamplingWOPosEnc,
    TooShortUttError,
)


def is_streaming(network: nn.Module) -> bool:
    """Return whether a network is an encoder of ESPnet's that can read as one speaks."""
    kinds = ContextualBlockConformerEncoder, ContextualBlockTransformerEncoder
    return isinstance(network, kinds)


def frames_of_blocks(network: nn.Module, count: int) -> int:
    """Return so many frames of features that a streaming encoder reads `count` blocks of
    frames, or a little more; 0 for any other encoder."""
    if not is_streaming(network):
        return 0
    return network.subsample * (network.block_size + count * network.hop_size)


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


def refuse_short_(network: nn.Module) -> None:
    """Let the subsampling of streaming encoders refuse what is too short for it, as those
    of all others do, by ESPnet's `TooShortUttError`."""
    for module in network.modules():
        if isinstance(module, Conv2dSubsamplingWOPosEnc):
            module.register_forward_pre_hook(_check_length)


def _check_length(subsampling: nn.Module, args: tuple[Tensor, ...]) -> None:
    frames, least = args[0].size(1), 1
    pairs = [*zip(subsampling.kernels, subsampling.strides, strict=True)]
    for kernel, stride in reversed(pairs):
        least = (least - 1) * stride + kernel
    if frames < least:
        raise TooShortUttError(
            f"has {frames} frames and is too short for subsampling (it needs at least "
            f"{least} frames)",
            frames,
            least,
        )

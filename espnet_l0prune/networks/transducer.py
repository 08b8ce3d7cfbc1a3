"""Here is what the encoder of ESPnet's task asr_transducer has beside its blocks.

It reads whole utterances, or chunks of frames as one speaks. In a training for the latter
(`dynamic_chunk_training`) each batch hides from a frame what is beyond its chunk, and the
chunks' size is drawn anew, also in evaluation.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from espnet_l0prune.networks.espnet_modules import (
    ConvolutionalSpatialGatingUnit,
    TransducerConvolution,
    TransducerEncoder,
)


def reads_chunks(network: nn.Module) -> bool:
    """Return whether a network is such an encoder, trained to read chunks of frames."""
    return isinstance(network, TransducerEncoder) and network.dynamic_chunk_training


def narrow_caches_(encoder: nn.Module) -> None:
    """Let the caches of an encoder's convolutions be as wide as they were cut.

    ESPnet makes them, of zeros, as wide as an uncut block.
    """
    for block in encoder.encoders.blocks:
        convolution = getattr(block, "conv_mod", None)
        if isinstance(convolution, TransducerConvolution):
            channels = convolution.depthwise_conv.out_channels
        elif isinstance(convolution, ConvolutionalSpatialGatingUnit):
            channels = convolution.conv.out_channels
        else:
            continue
        block.cache[1] = block.cache[1][:, :channels]


@contextmanager
def chunks_fixed(network: nn.Module, hidden: Tensor | None = None) -> Iterator[None]:
    """Let an encoder draw no chunks within a `with` block.

    Args:
        network: any encoder of ESPnet's; those of other tasks are left alone
        hidden: which frames (second) are hidden from each frame (first), (time, time)
            bool; None to hide none
    """
    if not isinstance(network, TransducerEncoder):
        yield
        return

    def hide(_, args, kwargs):
        return args, {**kwargs, "chunk_mask": hidden}

    drawn, network.dynamic_chunk_training = network.dynamic_chunk_training, False
    hook = network.encoders.register_forward_pre_hook(hide, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        network.dynamic_chunk_training = drawn


@torch.no_grad()
def encode_chunks(
    encoder: nn.Module, feats: Tensor, frames: int, left_context: int = 8
) -> Tensor:
    """Return what an encoder makes of an utterance chunk by chunk, (time, size).

    Args:
        encoder: that of ESPnet's task asr_transducer
        feats: features of one utterance, (1, time, input_size)
        frames: how many of them are in a chunk
        left_context: how many frames of the output before a chunk can be attended to
    """
    encoder.reset_cache(left_context, feats.device)
    seen = torch.zeros(1, 1, dtype=torch.long, device=feats.device)
    outputs = []
    for chunk in feats.split(frames, 1):
        length = torch.tensor([chunk.size(1)], device=feats.device)
        output = encoder.chunk_forward(chunk, length, seen, left_context)
        seen = seen + output.size(1)
        outputs.append(output[0])
    return torch.cat(outputs)

"""Here is what Whisper's networks have beside their blocks."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

from torch import Tensor, nn

from espnet_l0prune.core.claims import Claim
from espnet_l0prune.core.sites import Shapes, Site
from espnet_l0prune.networks.espnet_modules import (
    OpenAIWhisperDecoder,
    OpenAIWhisperEncoder,
    WhisperAttention,
    WhisperNorm,
)
from espnet_l0prune.networks.frontend import FrontendSite


class WhisperConvolutionSite(FrontendSite):
    """A `WhisperConvolutionSite` has the channels between the encoder's convolutions.

    The channels of the second convolution are the residual stream, and stay.

    Args:
        network: ESPnet's encoder, in which features are computed too
    """

    def __init__(self, network: nn.Module):
        layers = network.encoders
        super().__init__("encoders.conv1", layers.conv1, layers.conv1, layers.conv2)
        self.network = network

    def part(self, per: str) -> None:
        return None  # both convolutions get smaller, and lie in no module of their own

    def macs(self, shapes: Shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        for call in shapes.get(self.conv, ()):  # the mel filters' product
            yield math.prod(call.inputs[0]) * (self.network.n_fft // 2 + 1), ()


class VocabularySite(Site):
    """A `VocabularySite` is the decoder's embedding of tokens, which is not cut.

    It also computes the scores, in a product that no layer makes.
    """

    name = "decoders.token_embedding"
    kinds = ()

    def __init__(self, network: nn.Module):
        self.layers = network.decoders

    @property
    def module(self) -> nn.Module:
        return self.layers.token_embedding

    @property
    def sizes(self) -> dict[str, int]:
        return {}

    def claims(self) -> Iterator[Claim]:
        return iter(())

    def macs(self, shapes: Shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        for call in shapes.get(self.layers.ln, ()):
            yield math.prod(call.output) * self.module.num_embeddings, ()


def find_whisper_sites(network: nn.Module) -> Iterator[Site]:
    """Yield a network's sites outside its blocks, if it is Whisper's."""
    if isinstance(network, OpenAIWhisperEncoder):
        yield WhisperConvolutionSite(network)
    elif isinstance(network, OpenAIWhisperDecoder):
        yield VocabularySite(network)


def whisper_blocks(network: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield the blocks of an encoder or a decoder with their name, if it is Whisper's."""
    if isinstance(network, OpenAIWhisperEncoder):
        yield "encoders.blocks", network.encoders.blocks
    elif isinstance(network, OpenAIWhisperDecoder):
        yield "decoders.blocks", network.decoders.blocks


def reads_waveform(network: nn.Module) -> bool:
    """Return whether an encoder of ESPnet's reads audio (batch, samples)."""
    return isinstance(network, OpenAIWhisperEncoder)


def most_tokens(network: nn.Module) -> int | None:
    """Return how many tokens a decoder has positions for; None if there is no limit."""
    if isinstance(network, OpenAIWhisperDecoder):
        return len(network.decoders.positional_embedding)
    return None


def encode_waveform(
    network: nn.Module, audio: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Encode audio as Whisper's encoder does, also in float64.

    The features are computed in float32 then too, as Whisper's filters are.

    Args:
        network: ESPnet's encoder
        audio: (batch, samples), in the type of the network's weights
        lengths: numbers of valid samples, (batch,)

    Returns:
        the output (batch, frames, size), and its lengths (batch,)
    """
    features, frames = network.log_mel_spectrogram(audio.float(), lengths)
    with exact(network):
        return network.whisper_encode(features.to(audio.dtype), frames)


@contextmanager
def exact(network: nn.Module) -> Iterator[None]:
    """Let Whisper compute in the type of its weights within a `with` block.

    It computes norms and the scores of attentions in float32: weights in float64 do not
    fit the former, and rounding the latter hides how close two networks are.
    """
    norms = [module for module in network.modules() if isinstance(module, WhisperNorm)]
    attentions = [m for m in network.modules() if isinstance(m, WhisperAttention)]
    for norm in norms:
        norm.forward = MethodType(nn.LayerNorm.forward, norm)
    for attention in attentions:
        attention.qkv_attention = MethodType(_attend, attention)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward
        for attention in attentions:
            del attention.qkv_attention


def _attend(
    attention: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, None]:
    """Attend as Whisper does, from (batch, time, size) each."""
    q, k, v = (x.unflatten(-1, (attention.n_head, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / math.sqrt(q.size(-1))
    if mask is not None:
        scores = scores + mask[: q.size(2), : q.size(2)]
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2), None


def augmenting(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return where a model has its SpecAugment, and whose training mode turns it on.

    Whisper's encoder, which computes the features, has its own as `specaug`; other models
    of ESPnet's have it themselves.

    Args:
        model: ESPnet's model
    """
    if isinstance(model.encoder, OpenAIWhisperEncoder):
        return model.encoder, model.encoder.encoders
    return model, model

"""Here is what self-supervised models have that ESPnet runs by s3prl as front ends.

These are HuBERT, wav2vec 2.0 and WavLM: convolutions over the audio, and Transformer
blocks. Their tensors are (time, batch, size).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import MethodType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from espnet_l0prune.networks.audio_convolution import NORMS, AudioConvolutionSite
from espnet_l0prune.networks.block import Skip
from espnet_l0prune.networks.espnet_modules import S3prlFrontend
from espnet_l0prune.networks.frontend import FrontendSite
from espnet_l0prune.networks.s3prl_modules import (
    FLOAT32_NORMS,
    UPSTREAMS,
    S3prlAttention,
    S3prlLayer,
    WavLMAttention,
    WavLMLayer,
)

PATH = "upstream.upstream.model"  # of the self-supervised model in ESPnet's front end
BLOCKS = (S3prlLayer, WavLMLayer, Skip)
# Parts of a model that ESPnet uses; the others are of its pretraining
USED = ("feature_extractor", "layer_norm", "post_extract_proj", "encoder")


def upstream_of(network: nn.Module | None) -> nn.Module | None:
    """Return the self-supervised model in a front end, if it is one that has sites.

    Others stay whole: those of other classes or with other blocks, such as Conformer's,
    and those of which s3prl reads other states than what blocks take and return.
    """
    if not isinstance(network, S3prlFrontend):
        return None
    expert = network.upstream.upstream
    model = getattr(expert, "model", None)
    if not isinstance(model, UPSTREAMS) or getattr(expert, "feature_selection", None):
        return None
    known = all(isinstance(layer, BLOCKS) for layer in model.encoder.layers)
    return model if known else None


def freeze_unused_(network: nn.Module) -> None:
    """Let parameters of a front end not train that take no part in its forward.

    Distributed training would wait for their gradients.
    """
    if (model := upstream_of(network)) is not None:
        for name, parameter in model.named_parameters():
            if name.split(".")[0] not in USED:
                parameter.requires_grad_(False)
        if not network.multilayer_feature and hasattr(network.featurizer, "weights"):
            network.featurizer.weights.requires_grad_(False)


def s3prl_blocks(network: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield the blocks of a front end with their name, if it is a model of s3prl's."""
    if (model := upstream_of(network)) is not None:
        yield f"{PATH}.encoder.layers", model.encoder.layers


class S3prlConvolutionSite(AudioConvolutionSite):
    """A `S3prlConvolutionSite` is a convolution over the audio of a model of s3prl's."""

    @classmethod
    def find(cls, network: nn.Module) -> Iterator["FrontendSite"]:
        """Yield the sites of a front end, if it is a model of s3prl's.

        Where no layer makes the stream, the last channels are the stream, and stay.
        """
        model = upstream_of(network)
        if model is None:
            return
        layers = model.feature_extractor.conv_layers
        consumers = [*layers, nn.ModuleList([model.post_extract_proj])]
        for i, (layer, after) in enumerate(pairwise(consumers)):
            norms = [m for m in layer.modules() if isinstance(m, NORMS)]
            if i == len(layers) - 1:
                norms.append(model.layer_norm)
            if isinstance(after[0], (nn.Conv1d, nn.Linear)):
                name = f"{PATH}.feature_extractor.conv_layers.{i}.0"
                yield cls(name, model.feature_extractor, layer[0], norms, after[0])


def attend_by_layers_(network: nn.Module) -> None:
    """Let the attentions of a model of s3prl's call their layers, in place.

    They call one function of torch's with the layers' weights, which no hook sees, and
    which takes as many features in as heads give out.
    """
    for module in network.modules():
        if isinstance(module, (S3prlAttention, WavLMAttention)):
            module.forward = MethodType(attend, module)


@contextmanager
def attending_by_layers(network: nn.Module) -> Iterator[None]:
    """Let the attentions call their layers within a `with` block."""
    before = {m: vars(m).get("forward") for m in network.modules()}
    attend_by_layers_(network)
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)


def head_places(attention: nn.Module) -> list[int]:
    """Return the places of an attention's heads among those before any was cut.

    WavLM's positions, which its first block computes for all, have a row for each of
    these, and each head's row is weighed by its own share of the input.
    """
    return getattr(attention, "places", [*range(attention.num_heads)])


def attend(
    attention: Any,
    query: Tensor,
    *_: Any,
    key_padding_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    **__: Any,
) -> tuple:
    """Attend as HuBERT, wav2vec 2.0 and WavLM do, layer by layer.

    Args:
        attention: s3prl's module
        query: what attends to itself, (time, batch, size)
        key_padding_mask: where there is padding, (batch, time) bool
        position_bias: WavLM's relative positions, (batch * heads, time, time), with the
            heads that the model had before any was cut; None in its first block

    Returns:
        the output (time, batch, size), and None for the weights; WavLM's, also the
        relative positions
    """
    time, batch, _size = query.shape
    heads, places = attention.num_heads, head_places(attention)
    q, k, v = (
        layer(query).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    relative = isinstance(attention, WavLMAttention)
    if relative and position_bias is None and attention.has_relative_attention_bias:
        position_bias = attention.compute_bias(time, time).repeat(batch, 1, 1)
    bias = None
    if position_bias is not None:
        bias = position_bias.view(batch, -1, time, time)
        if attention.gru_rel_pos:
            read = query.transpose(0, 1).unflatten(-1, (bias.size(1), -1))
            grep = attention.grep_linear  # not called: its work grows with the heads
            share = F.linear(read[:, :, places].transpose(1, 2), grep.weight, grep.bias)
            one, two = share.unflatten(-1, (2, -1)).sum(-1).sigmoid().chunk(2, dim=-1)
            bias = (one * (two * attention.grep_a - 1.0) + 2.0) * bias[:, places]
        else:
            bias = bias[:, places]
    if key_padding_mask is not None:
        hidden = key_padding_mask.bool()[:, None, None]
        padding = query.new_zeros(hidden.shape).masked_fill(hidden, -math.inf)
        bias = padding if bias is None else bias + padding
    dropout = attention.dropout_module.p if attention.training else 0.0
    output = F.scaled_dot_product_attention(q, k, v, bias, dropout)
    output = attention.out_proj(output.permute(2, 0, 1, 3).flatten(2))
    return (output, None, position_bias) if relative else (output, None)


@contextmanager
def in_own_type(network: nn.Module) -> Iterator[None]:
    """Let the norms compute in the type of their weights within a `with` block.

    They compute in float32 otherwise, which hides how close two networks in float64 are.
    """
    norms = [module for module in network.modules() if isinstance(module, FLOAT32_NORMS)]
    for norm in norms:
        plain = nn.LayerNorm if isinstance(norm, nn.LayerNorm) else nn.GroupNorm
        norm.forward = MethodType(plain.forward, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward

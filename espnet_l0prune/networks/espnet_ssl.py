"""Here is what self-supervised models have that ESPnet has trained, as front ends.

These are, as XEUS (Chen et al. 2024, arXiv 2407.00837), convolutions over the audio and
one of ESPnet's encoders, whose blocks are those of any other encoder of its kind.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import nn

from espnet_l0prune.core.sites import Site
from espnet_l0prune.networks.audio_convolution import NORMS, AudioConvolutionSite
from espnet_l0prune.networks.espnet_modules import (
    CNNFrontend,
    ESPnetSSLFrontend,
    LinearProjection,
    UtteranceMVN,
)
from espnet_l0prune.networks.frontend import FrontendSite

MASKS = ("block_mask", "mask")  # names in `util_modules` of what hides states


def ssl_encoder(network: nn.Module | None) -> tuple[str, nn.Module] | None:
    """Return the encoder in a front end that ESPnet has trained, with its name in it."""
    if isinstance(network, ESPnetSSLFrontend):
        return "upstream.encoder", network.upstream.encoder
    return None


def find_ssl_sites(network: nn.Module) -> Iterator[Site]:
    """Yield the sites before the blocks, if it is a model that ESPnet has trained."""
    if isinstance(network, ESPnetSSLFrontend):
        yield from _convolutions(network.upstream)
        for site in FrontendSite.find(network.upstream.encoder):
            site.name = f"upstream.encoder.{site.name}"
            yield site


def _convolutions(model: nn.Module) -> Iterator[Site]:
    """Yield the sites of a model's convolutions over the audio.

    Where no layer makes the stream of the last channels, these stay.
    """
    extractor = model.frontend
    if not isinstance(extractor, CNNFrontend):
        return
    layers = [*extractor.layers]
    if any(layer.conv.groups > 1 for layer in layers):  # each channel by itself
        return
    consumers = [*(layer.conv for layer in layers), _projection(model)]
    for i, (conv, consumer) in enumerate(pairwise(consumers)):
        norms = [layers[i].layer_norm]
        if i == len(layers) - 1:
            norms.append(extractor.final_norm)
        if consumer is not None:
            name = f"upstream.frontend.layers.{i}.conv"
            norms = [norm for norm in norms if isinstance(norm, NORMS)]
            yield AudioConvolutionSite(name, extractor, conv, norms, consumer)


def _projection(model: nn.Module) -> nn.Linear | None:
    """Return the layer that makes the stream, if nothing before it mixes channels."""
    if model.specaug is not None or not isinstance(model.normalize, UtteranceMVN | None):
        return None
    layer = model.encoder.embed
    if isinstance(model.preencoder, LinearProjection):
        layer = model.preencoder.linear_out
    elif model.preencoder is None and isinstance(layer, nn.Sequential):
        layer = layer[0]
    return layer if isinstance(layer, nn.Linear) else None


def masks_of(network: nn.Module | None) -> dict[str, nn.Module]:
    """Return what hides hidden states of a front end in training, by name.

    It is empty for front ends other than those that ESPnet has trained.
    """
    if not (isinstance(network, ESPnetSSLFrontend) and network.mask_feats):
        return {}
    modules = network.upstream.util_modules
    return {name: modules[name] for name in MASKS if name in modules}


def freeze_unused_in_ssl_(network: nn.Module) -> None:
    """Let parameters of a front end not train that take no part in its forward.

    Distributed training would wait for their gradients. ESPnet reads the outputs of
    blocks, but not of the norm after them, and masks only if it is told to.
    """
    model, masks = network.upstream, {*masks_of(network).values()}
    unused = [m for m in model.util_modules.values() if m not in masks]
    unused.append(getattr(model.encoder, "after_norm", nn.Identity()))
    if len(model.encoder.encoders) == 1:
        unused.append(network.featurizer)
    for module in unused:
        module.requires_grad_(False)

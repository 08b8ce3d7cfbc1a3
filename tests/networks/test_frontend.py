"""Which subsamplings have channels that can be cut, by the types of their layers."""

import pytest
from torch import nn

from espnet_l0prune.networks.frontend import FrontendSite, last_linear
from espnet_l0prune.testing.models import model


class Other(nn.Module):
    """A layer of a type that nothing is known of."""


@pytest.mark.parametrize("path", ["conv.0", "conv.2", "out"])
def test_a_layer_of_another_type_leaves_no_sites(path):
    encoder = model(encoder="conformer").encoder
    names = [site.name for site in FrontendSite.find(encoder)]
    assert names == ["embed.conv.0", "embed.conv.2"]
    last = last_linear(encoder.embed)  # ESPnet up to 202511 has it in a sequence
    layers = {layer: name for name, layer in encoder.embed.named_modules()}
    encoder.embed.set_submodule(layers[last] if path == "out" else path, Other())
    assert list(FrontendSite.find(encoder)) == []

"""Which subsamplings have channels that can be cut, by the types of their layers."""

import pytest
from torch import nn

from espnet_l0prune.networks.frontend import FrontendSite
from espnet_l0prune.testing.models import model


class Other(nn.Module):
    """A layer of a type that nothing is known of."""


@pytest.mark.parametrize("path", ["conv.0", "conv.2", "out.0"])
def test_a_layer_of_another_type_leaves_no_sites(path):
    encoder = model(encoder="conformer").encoder
    names = [site.name for site in FrontendSite.find(encoder)]
    assert names == ["embed.conv.0", "embed.conv.2"]
    setattr(encoder.embed.get_submodule(path[:-2]), path[-1], Other())
    assert list(FrontendSite.find(encoder)) == []

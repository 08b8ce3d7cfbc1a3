"""Multiply-accumulates in closed form, beside those that torch counts."""

import pytest
import torch

from espnet_l0prune.core.terms import terms_of
from espnet_l0prune.deploy.bench import count_macs
from espnet_l0prune.plugin.counting import call_shapes
from tests.plugin.networks import ATTENTION, make

FRAMES, SIZE, HEADS = 11, 8, 2
CONF = {"output_size": SIZE, "attention_heads": HEADS, "num_blocks": 1}
POSITIONS = {  # of a key from a query
    "latest": 2 * FRAMES - 1,
    "legacy": FRAMES,
    "absolute": 0,
    "qk_norm": 0,
}


@pytest.mark.parametrize("attention", POSITIONS)
def test_attention(attention):
    """Queries with keys, weights with values and, of relative positions, queries with
    each of them: those ahead of a query too in the newer kind."""
    conf = {**CONF, "linear_units": 4, "input_layer": "linear", **ATTENTION[attention]}
    network = make("conformer", conf, [], 0)
    speech = torch.zeros(1, FRAMES, 20).double(), torch.tensor([FRAMES])
    shapes = call_shapes(network, lambda: network(*speech))
    (site,) = (s for s in network.sites() if s.name == "encoders.0.self_attn")
    ((macs, kinds),) = site.macs(shapes)
    assert macs == FRAMES * (2 * FRAMES + POSITIONS[attention]) * SIZE
    assert kinds == ("heads", "head_dims")
    terms = terms_of(network, network.sites(), shapes)
    assert sum(t.amounts["macs"] for t in terms) == count_macs(
        network, lambda net: net(*speech)
    )

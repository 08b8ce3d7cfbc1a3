"""The heat map says what is left."""

import pytest
import torch
from matplotlib import pyplot as plt

from espnet_l0prune.plugin.structure_plot import (
    columns,
    draw_structure,
    grid,
    label,
    share_left,
    units_left,
)
from espnet_l0prune.testing.models import model

MODULES = {
    "encoder.embed.conv.0": {"frontend_channels": (8, 6)},
    "encoder.embed.out": {},
    "encoder.encoders.0.feed_forward": {"ffn_modules": (1, 1), "ffn_channels": (12, 3)},
    "encoder.encoders.0.self_attn": {
        "att_modules": (1, 1),
        "heads": (4, 2),
        "head_dims": (8, 2),
    },
    "encoder.encoders.0.conv_module": {"conv_modules": (1, 0), "conv_channels": (16, 0)},
    "encoder.encoders.10.feed_forward": {"ffn_modules": (1, 1), "ffn_channels": (12, 12)},
    "encoder.encoders.0": {"blocks": (1, 1)},
    "decoder.decoders.0.self_attn": {"att_modules": (1, 0), "heads": (4, 0)},
    "ctc": {},
}


@pytest.mark.parametrize(
    ("units", "share", "text"),
    [
        ({"ffn_modules": (1, 1), "ffn_channels": (12, 3)}, 0.25, "3/12"),
        ({"heads": (4, 2), "head_dims": (8, 2)}, 0.125, "2/8"),
        ({"heads": (4, 4), "head_dims": (8, 8)}, 1.0, "4"),
        ({"ffn_modules": (1, 0), "ffn_channels": (12, 0)}, 0.0, "0"),
        ({"blocks": (1, 1)}, 1.0, "kept"),
        ({"blocks": (1, 0)}, 0.0, "cut"),
    ],
)
def test_a_module_in_one_figure(units, share, text):
    assert share_left(units) == share
    assert label(units) == text


def test_rows_and_columns():
    assert grid(MODULES) == {
        "front end": [(0.75, "conv 1\n6/8")],
        "block 1": [(0.125, "2/8"), (0.0, "0"), (0.25, "3/12")],
        "block 11": [None, None, (1.0, "12")],
    }
    assert grid(MODULES, "decoder") == {"block 1": [(0.0, "0")]}


def test_whisper_has_its_blocks_elsewhere():
    modules = {
        "encoder.encoders.conv1": {"frontend_channels": (8, 6)},
        "encoder.encoders.blocks.0.attn": {"heads": (4, 2)},
        "encoder.encoders.blocks.0.mlp": {"ffn_channels": (12, 3)},
        "encoder.encoders.blocks.0": {"blocks": (1, 1)},
    }
    assert grid(modules) == {
        "front end": [(0.75, "conv 1\n6/8")],
        "block 1": [(0.5, "2/4"), (0.25, "3/12")],
    }
    assert [*columns(modules).values()] == ["attention", "FFN"]


def test_a_new_kind_of_module_has_its_own_column():
    adapter = {"encoder.encoders.0.adapter": {"adapter_channels": (8, 2)}}
    assert grid({**MODULES, **adapter})["block 1"][-1] == (0.25, "2/8")
    assert [*columns({**MODULES, **adapter}).values()][-1] == "adapter"


def test_each_cell_is_drawn_with_its_numbers():
    figure, axes = plt.subplots()
    draw_structure(axes, MODULES)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["conv 1\n6/8", "2/8", "0", "3/12", "12"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["attention", "conv", "FFN"]
    names = [t.get_text() for t in axes.get_yticklabels()]
    assert names == ["front end", "block 1", "block 11"]
    plt.close(figure)


def test_blocks_and_widths():
    """A block that is gone has nothing left; widths are shown where they are less."""
    assert "stream" not in grid(MODULES)
    modules = {
        **MODULES,
        "encoder.encoders.0": {"blocks": (1, 0)},
        "encoder.encoders.10.stream": {"block_width": (16, 4)},
        "encoder.stream": {"width": (16, 8)},
    }
    assert grid(modules) == {
        "front end": [(0.75, "conv 1\n6/8")],
        "stream": [(0.5, "8/16")],
        "block 1": [(0.0, "cut"), (0.0, "cut"), (0.0, "cut"), None],
        "block 11": [None, None, (1.0, "12"), (0.25, "4/16")],
    }


@pytest.mark.parametrize("unit", ["blocks", "width", "block_width", "heads"])
def test_closed_gates_of_every_kind_are_seen(unit):
    net = model(encoder_conf={"units": [unit]})
    before = grid(units_left(net.encoder, "encoder"))
    for site in net.encoder.gated_sites()[:1]:
        gate = site.gates[unit]
        gate.decide_(torch.arange(len(gate.log_alpha)) == 99)
    after = grid(units_left(net.encoder, "encoder"))
    assert before != after

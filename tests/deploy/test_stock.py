"""A cut model in plain ESPnet's shape computes the same, and needs no plugin."""

import argparse
import copy

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.plan import plan_of
from espnet_l0prune.core.selection import select
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.cut import cut_config, largest_step
from espnet_l0prune.deploy.exports.stock import to_stock
from espnet_l0prune.deploy.verify import (
    TOLERANCE,
    difference_of,
    outputs,
    require_equal,
    tolerance_of,
)
from espnet_l0prune.plugin.building import note_input_
from espnet_l0prune.plugin.counting import sites_of
from espnet_l0prune.testing.models import arguments, budget, disturb_

SMALL = {"output_size": 16, "attention_heads": 4, "num_blocks": 3}
CONFORMER = {"linear_units": 12, "macaron_style": True, "cnn_module_kernel": 5}
NETWORKS = {
    "conformer": {
        "encoder_conf": {**SMALL, **CONFORMER, "rel_pos_type": "latest"},
    },
    "multiconv_conformer": {
        "encoder_conf": {
            **SMALL,
            "linear_units": 12,
            "cgmlp_linear_units": 8,
            "multicgmlp_kernel_sizes": "3,5",
            "rel_pos_type": "latest",
        },
    },
    "transformer": {
        "encoder_conf": {**SMALL, "linear_units": 12},
        "decoder": "l0_transformer",
        "decoder_conf": {"attention_heads": 4, "linear_units": 12, "num_blocks": 2},
    },
    "transformer_multispkr": {
        "encoder_conf": {**SMALL, "linear_units": 12, "num_blocks_sd": 1, "num_inf": 2},
    },
    "branchformer": {
        "encoder_conf": {**SMALL, "cgmlp_linear_units": 12, "rel_pos_type": "latest"},
    },
    "e_branchformer": {
        "encoder_conf": {
            **SMALL,
            "linear_units": 12,
            "cgmlp_linear_units": 12,
            "use_ffn": True,
            "macaron_ffn": True,
            "rel_pos_type": "latest",
        },
    },
}
UNEQUAL = ("width", "block_width", "cgmlp_channels")


def cut_model(name: str, seed: int, without: tuple[str, ...] = UNEQUAL, blocks: int = 3):
    """A cut model of random structure, with its configuration."""
    args = arguments(encoder=f"l0_{name}")
    for option, value in NETWORKS[name].items():
        conf = dict(value) if isinstance(value, dict) else value
        if isinstance(conf, dict):
            conf |= {"units": "all", "num_blocks": min(blocks, conf["num_blocks"])}
        setattr(args, option, conf)
    torch.manual_seed(seed)
    model = ASRTask.build_model(copy.deepcopy(args)).eval()
    note_input_(model, args)
    disturb_(model, seed)
    generator = torch.Generator().manual_seed(seed)
    density = torch.rand((), generator=generator)
    for site in sites_of(model):
        for kind, gate in site.gates.items():
            size = gate.log_alpha.shape
            # whole modules and blocks stay more often
            least = density if len(gate.log_alpha) > 1 else 0.7
            keep = torch.rand(size, generator=generator) < least
            if site.protected(kind) is not None:
                keep[0] = True
            gate.decide_(keep | torch.tensor(kind in without))
    masked, tolerance = outputs(model), tolerance_of(sites_of(model))
    cut_(model, sites_of(model), plan_of(sites_of(model)))
    require_equal(difference_of(masked, outputs(model)), tolerance)
    config = cut_config(vars(args), model)
    return model, argparse.Namespace(**config)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", NETWORKS)
def test_random_structures(name, seed):
    # speakers could be left with unequal numbers of blocks: see test_speakers.py
    without = (*UNEQUAL, "blocks") if name == "transformer_multispkr" else UNEQUAL
    model, args = cut_model(name, seed, without)
    stock, options, tolerance = to_stock(model, args)
    require_equal(difference_of(outputs(model), outputs(stock)), tolerance)
    assert not any(
        type(module).__module__.startswith("espnet_l0prune") for module in stock.modules()
    )
    assert options.encoder == name
    assert count_parameters(stock) >= count_parameters(model)
    rebuilt = ASRTask.build_model(copy.deepcopy(options))
    rebuilt.load_state_dict(stock.state_dict())


def test_blocks_and_uniform_widths_make_it_smaller():
    """What a stock configuration can say, it says: no zeros are left in it."""
    args = arguments(encoder="l0_conformer")
    args.encoder_conf = {**SMALL, **CONFORMER, "rel_pos_type": "latest", "units": "all"}
    model = ASRTask.build_model(copy.deepcopy(args)).eval()
    note_input_(model, args)
    for site in sites_of(model):
        for kind, gate in site.gates.items():
            keep = torch.ones_like(gate.log_alpha, dtype=torch.bool)
            if kind == "ffn_channels":
                keep[5:] = False
            if kind == "blocks":
                keep[:] = not site.name.endswith(".1")
            gate.decide_(keep)
    masked = outputs(model)
    cut_(model, sites_of(model), plan_of(sites_of(model)))
    stock, options, tolerance = to_stock(
        model, argparse.Namespace(**cut_config(vars(args), model))
    )
    assert tolerance == TOLERANCE
    require_equal(difference_of(masked, outputs(stock)))
    assert options.encoder_conf["num_blocks"] == 2
    assert options.encoder_conf["linear_units"] == 5
    assert count_parameters(stock) == count_parameters(model)


@pytest.mark.parametrize("name", ["conformer", "e_branchformer"])
def test_a_uniform_selection_can_be_expressed(name):
    """Channels of FFNs and cgMLPs: the stock-shaped model is as small as the cut one."""
    units = ["ffn_channels", "cgmlp_channels"][: 1 + (name == "e_branchformer")]
    conf = {**NETWORKS[name]["encoder_conf"], "units": units, "uniform": True}
    args = arguments(encoder=f"l0_{name}")
    args.encoder_conf = {**conf, "round_to": 2}
    torch.manual_seed(0)
    model = ASRTask.build_model(copy.deepcopy(args)).eval()
    note_input_(model, args)
    for site in sites_of(model):
        for gate in site.gates.values():
            gate.log_alpha.data.normal_()
    counted, target = budget(model), {"params": 0.1}
    plan = select(counted, target)
    decide_(sites_of(model), plan)
    left = {kind: set() for kind in units}
    for units_left in plan.values():
        for kind in left.keys() & units_left.keys():
            left[kind].add(len(units_left[kind]))
    assert all(len(numbers) == 1 for numbers in left.values()), left
    assert 0 <= counted.actual()["params"] - 0.1 <= 0.001 + largest_step(counted, target)
    cut_(model, sites_of(model), plan)
    config = argparse.Namespace(**cut_config(vars(args), model))
    stock, _, tolerance = to_stock(model, config)
    require_equal(difference_of(outputs(model), outputs(stock)), tolerance)
    assert count_parameters(stock) == count_parameters(model)


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("conformer", "width", "was cut in width"),
        ("e_branchformer", "cgmlp_channels", "cgMLPs of different widths"),
    ],
)
def test_what_no_stock_configuration_expresses(name, cut, message):
    without = tuple(kind for kind in UNEQUAL if kind != cut)
    model, args = cut_model(name, 1, without)
    with pytest.raises(ValueError, match=message):
        to_stock(model, args)


def test_linear_attention_is_refused():
    conf = {"selfattention_layer_type": "selfattn", "pos_enc_layer_type": "abs_pos"}
    args = arguments(encoder_conf={**conf, "random_features": 8, "units": []})
    with pytest.raises(ValueError, match="has linear attention, which no configuration"):
        to_stock(ASRTask.build_model(copy.deepcopy(args)), args)


def test_a_model_with_gates_is_refused():
    args = arguments()
    with pytest.raises(ValueError, match="has gates; expected a model that was cut"):
        to_stock(ASRTask.build_model(copy.deepcopy(args)), args)

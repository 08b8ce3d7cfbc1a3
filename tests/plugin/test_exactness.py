"""Masked equals cut, and the cost equals the count, over random structures."""

import copy
import math

import pytest
import torch
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder
from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.contextual_block_conformer_encoder import (
    ContextualBlockConformerEncoder,
)
from espnet2.asr.encoder.contextual_block_transformer_encoder import (
    ContextualBlockTransformerEncoder,
)
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from espnet2.asr.encoder.multiconvformer_encoder import MultiConvConformerEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from espnet2.asr.encoder.transformer_encoder_multispkr import (
    TransformerEncoder as MultiSpeakerTransformerEncoder,
)
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from espnet_l0prune.core.costs import counted
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.gates import GATES
from espnet_l0prune.core.plan import Plan, plan_of
from espnet_l0prune.core.projected import Row, project_, settle_
from espnet_l0prune.core.ranking import closing_order
from espnet_l0prune.core.selection import select
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.bench import count_macs
from espnet_l0prune.deploy.cut import largest_step
from espnet_l0prune.deploy.verify import probe
from espnet_l0prune.networks.units import choose_units
from espnet_l0prune.testing.models import whole
from tests.plugin.networks import (
    ATTENTION,
    BLOCKS_OF_FRAMES,
    KINDS,
    LENGTHS,
    STREAMING,
    branchformer_attention,
    budget_of,
    confs,
    copy_of,
    draw_plan,
    make,
    output,
    prunable,
    relative,
    soften_,
)

ENOUGH = settings(suppress_health_check=list(HealthCheck))
SMALL = {
    "conformer": {"linear_units": 12, "macaron_style": True, "cnn_module_kernel": 3},
    "transformer": {"linear_units": 12},
    "branchformer": {"cgmlp_linear_units": 12, "cgmlp_conv_kernel": 3},
    "e_branchformer": {
        "cgmlp_linear_units": 12,
        "cgmlp_conv_kernel": 3,
        "use_ffn": True,
        "macaron_ffn": True,
        "linear_units": 12,
    },
    "e_branchformer_ctc": {
        "cgmlp_linear_units": 12,
        "cgmlp_conv_kernel": 3,
        "use_ffn": True,
        "macaron_ffn": True,
        "linear_units": 12,
        "input_layer": "conv2d8",  # the only one that takes the prefix
    },
    "multiconv_conformer": {
        "linear_units": 12,
        "macaron_style": True,
        "cgmlp_linear_units": 8,
        "multicgmlp_kernel_sizes": "3,5",
        "multicgmlp_merge_conv_kernel": 3,
    },
    "streaming_conformer": {
        "linear_units": 12,
        "macaron_style": True,
        "cnn_module_kernel": 3,
        **BLOCKS_OF_FRAMES[2],
    },
    "streaming_transformer": {"linear_units": 12, **BLOCKS_OF_FRAMES[2]},
    "speakers": {"linear_units": 12, "num_inf": 2, "num_blocks_sd": 1},
    "decoder": {"linear_units": 12},
    "whisper": {},
    "whisper_decoder": {},
    "hubert": {"linear_units": 12, "channels": 6},
    "wav2vec2": {"linear_units": 12, "channels": 6, "large": True},
    "wavlm": {"linear_units": 12, "channels": 6},
    "espnet_ssl": {"linear_units": 12, "channels": 6, "positions": "abs_pos"},
    "transducer_conformer": {"linear_units": 12},
    "transducer_branchformer": {"linear_units": 12},
    "transducer_ebranchformer": {"linear_units": 12},
}
WIDTHS = ("width", "block_width")
SIZES = {"output_size": 16, "attention_heads": 4, "num_blocks": 2}


def check_cut(kind: str, conf: dict, network, plan: Plan) -> None:
    """All that must hold of a plan: outputs, parameters, MACs, structure."""
    decide_(network.sites(), plan)
    masked, budget = output(network), budget_of(network)
    small = copy_of(network)
    cut_(small, small.sites(), plan_of(network.sites()))
    assert relative(masked, output(small)) <= 1e-10
    numel = sum(p.numel() for p in small.parameters())
    assert round(budget.remaining()) == numel
    assert budget.remaining() == pytest.approx(numel)
    expected = budget.totals["params"] * (1 - float(budget.expected()["params"]))
    assert expected == pytest.approx(numel)
    counted = count_macs(small, output)
    assert budget.remaining("macs") == pytest.approx(counted, rel=1e-9)
    after = budget_of(small).totals
    assert after == {"params": numel, "macs": pytest.approx(counted, rel=1e-9)}

    # from its structure alone the cut network is rebuilt, and it is not cut twice
    cut_(small, small.sites(), plan_of(small.sites()))  # once more, which changes nothing
    rebuilt = make(kind, conf, [], 1, structure=small.structure())
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(output(small), output(rebuilt))
    assert rebuilt.structure() == small.structure()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(ENOUGH, max_examples=60)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_masked_equals_cut_and_cost_equals_count(kind, data, seed):
    conf = data.draw(confs(kind))
    able = prunable(kind, conf)
    units = data.draw(st.one_of(st.just(able), st.lists(st.sampled_from(able))))
    conf["gate"] = data.draw(st.sampled_from(list(GATES)))
    network = make(kind, conf, units, seed)
    check_cut(kind, conf, network, draw_plan(data, network))


@pytest.mark.parametrize(
    ("kind", "unit"),
    [(kind, unit) for kind in KINDS for unit in prunable(kind, SMALL[kind] | SIZES)],
)
def test_every_unit_alone(kind, unit):
    """None, one, or every second of one kind of unit everywhere."""
    conf = SMALL[kind] | SIZES
    for step in (0, 1, 2):
        network = make(kind, conf, [unit], step)
        gated = [site for site in network.sites() if site.gates]
        assert {k for site in gated for k in site.gates} == {unit}
        assert 0 < budget_of(network).reachable()["params"] <= 1
        plan = plan_of(network.sites()).plain()
        for site in gated:
            units = plan[site.name][unit]
            plan[site.name][unit] = {0: [], 1: units[:1], 2: units[::2]}[step]
            if step == 0 and site.protected(unit) is not None:
                plan[site.name][unit] = units[-1:]
        check_cut(kind, conf, network, Plan(plan))


@pytest.mark.parametrize("layer", ["conv2d6", "conv2d8", "conv1d1", "conv1d2", "conv1d3"])
def test_other_front_ends(layer):
    conf = SMALL["e_branchformer"] | SIZES | {"input_layer": layer}
    network = make("e_branchformer", conf, ["frontend_channels", "width"], 0)
    half = plan_of(network.sites()).plain()
    for site in network.sites():
        for kind in site.gates:
            half[site.name][kind] = half[site.name][kind][1::2]
    plan = Plan(half)
    feats, lengths = probe(20, (90, 70))

    def run(encoder):
        with torch.no_grad():
            out, valid, _ = encoder(feats, lengths)
        return torch.cat([o[:n] for o, n in zip(out, valid, strict=True)])

    decide_(network.sites(), plan)
    small = copy_of(network)
    cut_(small, small.sites(), plan)
    assert relative(run(network), run(small)) <= 1e-10
    assert small.embed.conv[0].out_channels == 8


@pytest.mark.parametrize("kind", KINDS)
@settings(ENOUGH, max_examples=15)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_folding_soft_gates_changes_nothing(kind, data, seed):
    conf = data.draw(confs(kind))
    network = make(kind, conf, prunable(kind, conf), seed)
    soften_(network, seed)
    plan = plan_of(network.sites())
    soft = output(network)
    assume(bool(soft.isfinite().all()))
    # what is protected opens: compare only where nothing had to be
    for site in network.sites():
        for unit, gate in site.gates.items():
            assume(plan[site.name][unit] == gate.is_open().nonzero().flatten().tolist())
    decide_(network.sites(), plan)
    assert relative(soft, output(network)) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
@settings(ENOUGH, max_examples=15)
@given(
    data=st.data(),
    seed=st.integers(0, 1000),
    shares=st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)),
)
def test_selection_meets_every_target(kind, data, seed, shares):
    conf = data.draw(confs(kind))
    network = make(kind, conf, prunable(kind, conf), seed)
    generator = torch.Generator().manual_seed(seed)
    for site in network.sites():
        for gate in site.gates.values():
            gate.log_alpha.data.normal_(generator=generator)
    budget = budget_of(network)
    reachable = budget.reachable()
    targets = {
        cost: share * reachable[cost]
        for cost, share in zip(("params", "macs"), shares, strict=True)
    }
    plan = select(budget, targets)
    decide_(network.sites(), plan)
    for cost, target in targets.items():
        assert budget.actual()[cost] >= target - 1e-12
    check_cut(kind, conf, network, plan)


def wide(**more):
    conf = {"output_size": 96, "attention_heads": 4, "linear_units": 384, **more}
    network = make("conformer", conf | {"num_blocks": 4}, "default", 0, **{})
    for site in network.sites():
        for gate in site.gates.values():
            gate.log_alpha.data.normal_()
    return network


def test_fine_units_land_within_a_tenth_of_a_point():
    budget = budget_of(wide())
    for targets in (
        {"params": 0.1},
        {"params": 0.5},
        {"macs": 0.3},
        {"macs": 0.7},
        {"params": 0.5, "macs": 0.6},
        {"params": 0.7, "macs": 0.3},
    ):
        plan = select(budget, targets)
        trial = wide()
        decide_(trial.sites(), plan)
        actual = budget_of(trial).actual()
        excess = [actual[cost] - target for cost, target in targets.items()]
        assert 0 <= min(excess) <= 1e-3
    with pytest.raises(ValueError, match=r"macs is 0.999999, .* reach at most 0\.9"):
        select(budget, {"macs": 0.999999})


COARSE = {
    "in blocks": ["att_modules", "ffn_modules", "conv_modules"],
    "blocks and channels": ["blocks", "ffn_channels"],
    "a heavy front end": ["conv_modules", "frontend_channels"],
}


@pytest.mark.parametrize("units", COARSE)
@settings(ENOUGH, max_examples=12)
@given(seed=st.integers(0, 1000), share=st.floats(0.1, 1.0))
def test_nothing_is_closed_for_nothing(units, seed, share):
    """With any group of units that went open again, a target would be missed; and `cut`
    finds the budget met."""
    conf = {"output_size": 32, "attention_heads": 2, "linear_units": 200, "num_blocks": 2}
    network = make("conformer", conf, COARSE[units], seed, round_to=2)
    generator = torch.Generator().manual_seed(seed)
    for site in network.sites():
        for gate in site.gates.values():
            gate.log_alpha.data.normal_(generator=generator)
    budget = budget_of(network)
    targets = {"params": share * budget.reachable()["params"]}
    order = closing_order(budget.gates).rank
    decide_(network.sites(), select(budget, targets))
    opened = budget.opened()
    excess = budget.actual()["params"] - targets["params"]
    assert -1e-12 <= excess <= 1e-3 + largest_step(budget, targets)
    if excess > 1e-3:
        closed = (opened == 0) & budget.all_open().bool()
        for group in order[closed].unique():
            more = opened + (closed & (order == group))
            assert float(budget.sparsity(more)["params"]) < targets["params"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("targets", [(0.5, 0.5), (0.3, 0.4), (0.8, 0.8)])
def test_both_costs_are_met_as_nearly_as_one(seed, targets):
    """As at the end of a training that holds both: nearly all gates are decided. Without
    `equality` all but one of the targets may be overshot by any amount."""
    conf = {"output_size": 32, "attention_heads": 4, "linear_units": 200, "num_blocks": 3}
    network = make("conformer", conf, "default", seed)
    budget, goal = budget_of(network), dict(zip(counted(), targets, strict=True))
    row = Row(budget)
    row.set_(3 * torch.randn(row.values.shape, generator=torch.manual_seed(seed)))
    project_(row, goal, torch.ones_like(row.values))
    settle_(row, goal, 1)
    project_(row, goal, torch.ones_like(row.values))
    excess = {}
    for equality in (False, True):
        state = copy.deepcopy(network)
        decide_(state.sites(), select(budget, goal, equality=equality))
        actual = budget_of(state).actual()
        excess[equality] = [actual[cost] - goal[cost] for cost in goal]
        assert min(excess[equality]) >= 0
    assert max(excess[True]) <= max(excess[False])
    assert max(excess[True]) <= 0.005


def test_units_that_are_dear_in_what_overshoots_stay():
    """FFN channels cost parameters more than MACs, the front end's channels the other way
    round. The former close first, all of them, before the MACs are met."""
    conf = {"output_size": 32, "attention_heads": 2, "linear_units": 64, "num_blocks": 2}
    network = make("conformer", conf, ["ffn_channels", "frontend_channels"], 0)
    budget, goal = budget_of(network), {"params": 0.2, "macs": 0.4}
    order = {"ffn_channels": -3.0, "frontend_channels": 3.0}
    for (_, kind), gate in budget.gates.items():
        gate.log_alpha.data.copy_(
            order[kind] + torch.linspace(-1, 1, len(gate.log_alpha))
        )
    plans = [select(budget, goal, equality=equality) for equality in (False, True)]
    kept = [len(plan["encoders.0.feed_forward"]["ffn_channels"]) for plan in plans]
    assert kept[0] == 0 < kept[1]


@pytest.mark.parametrize("multiple", [8, 16])
def test_survivors_are_a_multiple(multiple):
    conf = {"output_size": 96, "attention_heads": 4, "linear_units": 100, "num_blocks": 2}
    network = make("conformer", conf, "default", 0, round_to=multiple)
    for site in network.sites():
        for gate in site.gates.values():
            gate.log_alpha.data.normal_()
    budget = budget_of(network)
    plan = select(budget, {"params": 0.4, "macs": 0.5})
    decide_(network.sites(), plan)
    actual = budget.actual()
    assert actual["params"] >= 0.4
    assert actual["macs"] >= 0.5
    # a group of the largest tensor is all that may be missed
    group = multiple * 96 * 9 * 96 / budget.totals["params"]
    assert min(actual["params"] - 0.4, actual["macs"] - 0.5) <= group
    cut_(network, network.sites(), plan)
    sizes = [
        size
        for site in network.sites()
        for kind, size in site.sizes.items()
        if kind.endswith("_channels")
    ]
    assert len(sizes) == 6
    assert all(size % multiple == 0 for size in sizes), sizes


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_costs_equal_finite_differences(kind):
    conf = SMALL[kind] | {"output_size": 8, "attention_heads": 2, "num_blocks": 1}
    if kind in ("branchformer", "e_branchformer"):
        conf["use_linear_after_conv"] = True  # a gate that meets itself
    network = make(kind, conf, prunable(kind, conf), 0)
    gates = [g.log_alpha for s in network.sites() for g in s.gates.values()]
    torch.manual_seed(0)
    for alpha in gates:
        alpha.data.normal_()
    budget = budget_of(network)
    for cost in ("params", "macs"):
        analytic = torch.autograd.grad(budget.expected()[cost], gates)
        for alpha, gradient in zip(gates, analytic, strict=True):
            for i in range(alpha.numel()):
                values = []
                for step in (1e-5, -1e-5):
                    alpha.data[i] += step
                    values.append(float(budget.expected()[cost].detach()))
                    alpha.data[i] -= step
                assert (values[0] - values[1]) / 2e-5 == pytest.approx(
                    float(gradient[i]), abs=1e-9
                )


@pytest.mark.parametrize("kind", ["conformer", "e_branchformer"])
def test_expected_cost_is_the_mean_over_sampled_structures(kind):
    """Exact for independent gates, those that meet themselves or each other too."""
    conf = SMALL[kind] | {"output_size": 4, "attention_heads": 2, "num_blocks": 1}
    if kind == "e_branchformer":
        conf["use_linear_after_conv"] = True
    network = make(kind, conf, prunable(kind, conf), 0)
    torch.manual_seed(1)
    for site in network.sites():
        for gate in site.gates.values():
            gate.log_alpha.data.normal_(-0.5)
    budget, found = budget_of(network), []
    alphas = [gate.log_alpha for gate in budget.gates.values()]
    logits = pad_sequence(alphas, batch_first=True) + 2 / 3 * math.log(11)
    probability = budget.all_open() * torch.sigmoid(logits)
    for _ in range(4000):
        opened = (torch.rand_like(probability) < probability).double()
        found.append([float(s) for s in budget.sparsity(opened).values()])
    mean = torch.tensor(found).mean(0)
    expected = [float(s) for s in budget.expected().values()]
    assert mean.tolist() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("gate", GATES)
def test_expected_cost_is_that_of_the_gates_distribution(gate):
    conf = SMALL["conformer"] | SIZES
    network = make("conformer", conf, prunable("conformer", conf), 0, gate=gate)
    soften_(network, 0)
    budget, sizes = budget_of(network), []
    for name in ("probability", "is_open"):
        rows = [getattr(g, name)().double() for g in budget.gates.values()]
        sizes.append(budget.sparsity(pad_sequence(rows, batch_first=True)))
    for cost in budget.totals:
        assert float(budget.expected()[cost]) == pytest.approx(float(sizes[0][cost]))
        assert budget.actual()[cost] == float(sizes[1][cost])


def test_what_round_to_keeps_is_not_reachable():
    """A target beyond it is refused before the training, not after."""
    conf = SMALL["conformer"] | SIZES
    network = make("conformer", conf, ["frontend_channels"], 0, round_to=8)
    budget = budget_of(network)
    most = budget.reachable()["params"]
    plan = select(budget, {"params": most})
    assert all(len(plan[f"embed.conv.{i}"]["frontend_channels"]) == 8 for i in (0, 2))
    with pytest.raises(ValueError, match="reach at most"):
        select(budget, {"params": most + 0.001})


def test_layers_that_cannot_be_cut_are_refused_by_name():
    foreign = SMALL["e_branchformer"] | SIZES
    foreign |= {"attention_layer_type": "fast_selfattn", "pos_enc_layer_type": "abs_pos"}
    with pytest.raises(ValueError, match=r"0.attn: it is a FastSelfAttention; only"):
        make("e_branchformer", foreign, ["heads"], 0)
    make("e_branchformer", foreign, ["cgmlp_channels"], 0)  # what is beside it can be
    make("e_branchformer", foreign, ["block_width"], 0)
    with pytest.raises(ValueError, match="attn of its blocks, a FastSelfAttention"):
        make("e_branchformer", foreign, ["width"], 0)

    mixing = SMALL["conformer"] | SIZES | ATTENTION["absolute"]
    mixing |= {"pos_enc_layer_type": "conv"}
    with pytest.raises(ValueError, match="convolutional positional encoding mixes"):
        make("conformer", mixing, ["width"], 0)

    network = make("conformer", SMALL["conformer"] | SIZES, [], 0)
    network.encoders[1].feed_forward = network.encoders[0].feed_forward
    with pytest.raises(
        ValueError, match=r"0.feed_forward\S* and \S*1.feed_forward\S* are"
    ):
        choose_units(network, ["ffn_channels"], "encoder_conf")
    assert choose_units(network, ["heads"], "encoder_conf") == ["heads"]


def test_a_word_leaves_out_what_cannot_be_cut_and_says_so(caplog):
    conf = SMALL["e_branchformer"] | SIZES
    conf |= {"attention_layer_type": "fast_selfattn", "pos_enc_layer_type": "abs_pos"}
    network = make("e_branchformer", conf, "default", 0)
    kinds = {kind for site in network.gated_sites() for kind in site.gates}
    assert kinds == {"ffn_channels", "cgmlp_channels", "frontend_channels"}
    (record,) = caplog.records
    assert "default leaves out heads, which cannot be pruned at" in record.getMessage()


@pytest.mark.parametrize("kind", ["branchformer", "e_branchformer"])
def test_what_cannot_be_cut_is_counted(kind):
    """Beside what can, of which every second unit goes."""
    conf = SMALL[kind] | SIZES
    conf |= {"attention_layer_type": "fast_selfattn", "pos_enc_layer_type": "abs_pos"}
    for unit in prunable(kind, conf):
        network = make(kind, conf, [unit], 0)
        plan = plan_of(network.sites()).plain()
        for site in network.gated_sites():
            plan[site.name][unit] = plan[site.name][unit][::2]
        check_cut(kind, conf, network, Plan(plan))


STOCK = {
    "conformer": ConformerEncoder,
    "transformer": TransformerEncoder,
    "branchformer": BranchformerEncoder,
    "e_branchformer": EBranchformerEncoder,
    "multiconv_conformer": MultiConvConformerEncoder,
    "streaming_conformer": ContextualBlockConformerEncoder,
    "streaming_transformer": ContextualBlockTransformerEncoder,
    "speakers": MultiSpeakerTransformerEncoder,
    "decoder": TransformerDecoder,
}


def variants():
    for attention, options in ATTENTION.items():
        if attention == "linear":
            continue
        conf = SMALL["conformer"] | {"stochastic_depth_rate": 0.2} | options
        yield pytest.param("conformer", conf, id=f"conformer-{attention}")
    for kind in ("branchformer", "e_branchformer"):
        conf = SMALL[kind] | branchformer_attention(ATTENTION["latest"])
        yield pytest.param(kind, conf, id=kind)
    for kind in ("transformer", "speakers", "multiconv_conformer", "decoder", *STREAMING):
        yield pytest.param(kind, SMALL[kind], id=kind)


@pytest.mark.parametrize(("kind", "conf"), variants())
@pytest.mark.parametrize("training", [False, True])
def test_open_gates_are_stock_bit_for_bit(kind, conf, training):
    """In evaluation; and in warm-up training, from the same random state."""
    conf = conf | SIZES
    units = prunable(kind, conf)
    sizes = (12, conf.pop("output_size")) if kind == "decoder" else (20,)
    torch.manual_seed(0)
    stock = STOCK[kind](*sizes, **conf).train(training)
    ours = KINDS[kind](*sizes, **conf, units=units).train(training)
    missing = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith(".log_alpha") for key in missing.missing_keys)
    gates = sum(len(site.gates) for site in ours.sites())
    assert len(missing.missing_keys) == gates > 0
    outputs = []
    for network in (stock, ours):
        torch.manual_seed(1)
        if kind == "decoder":
            memory, lengths = probe(16, (13, 7))
            tokens = torch.arange(10).view(2, 5)
            out = network(memory.float(), lengths, tokens, torch.tensor([5, 3]))[0]
        else:
            feats, lengths = probe(20, LENGTHS)
            out = network(feats.float(), lengths)[0]
        out.square().sum().backward()
        outputs.append(out)
    assert torch.equal(*outputs)
    theirs = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, theirs[name].grad), name


def test_a_network_without_gates_has_stock_keys():
    for kind, stock in STOCK.items():
        conf = SMALL[kind] | SIZES
        sizes = (12, conf.pop("output_size")) if kind == "decoder" else (20,)
        bare = KINDS[kind](*sizes, **conf, units=[])
        assert list(bare.state_dict()) == list(stock(*sizes, **conf).state_dict())


def test_a_cut_network_is_pruned_again():
    conf = SMALL["conformer"] | SIZES
    structure = {
        "embed.conv.0": {"frontend_channels": 9},
        "encoders.0.self_attn": {"heads": 0},
        "encoders.1.self_attn": {"heads": 3, "head_dims": 3},
        "encoders.0.conv_module": {"conv_modules": 0, "conv_channels": 0},
        "encoders.1.conv_module": {"conv_modules": 1, "conv_channels": 5},
        "encoders.1.feed_forward": {"ffn_channels": 7},
        "stream": {"width": [0, 1, 2, 3, 5, 8, 13]},
        "encoders.0.stream": {"block_width": [1, 2, 8]},
    }
    structure = whole(make("conformer", conf, [], 0), structure)
    network = make("conformer", conf, "default", 0, structure=structure)
    budget = budget_of(network)
    assert budget.totals["params"] == count_parameters(network)
    plan = select(budget, {"params": 0.2})
    decide_(network.sites(), plan)
    small = copy_of(network)
    cut_(small, small.sites(), plan)
    assert relative(output(network), output(small)) <= 1e-10
    assert count_parameters(small) == round(budget.remaining())
    assert budget_of(small).totals["macs"] == count_macs(small, output)
    assert budget.remaining("macs") == pytest.approx(count_macs(small, output))
    assert small.structure()["encoders.0.stream"] == {"block_width": [1, 2, 8]}
    with pytest.raises(ValueError, match="it can be cut only once"):
        make("conformer", conf, ["width"], 0, structure=structure)

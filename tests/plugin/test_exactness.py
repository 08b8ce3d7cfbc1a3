"""Masked equals cut, and the cost equals the count, over random structures."""

import copy

import pytest
import torch
from builders import disturb_
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_l0prune.core.sites import Budget, decide_, plan_of, select, structure_of
from espnet_l0prune.deploy.cut import cut_
from espnet_l0prune.deploy.verify import probe
from espnet_l0prune.plugin.encoder import L0ConformerEncoder
from espnet_l0prune.plugin.sites import UNITS, count_parameters

LENGTHS = (60, 41, 33, 17)
ATTENTION = {
    "latest": {"rel_pos_type": "latest"},
    "legacy": {"rel_pos_type": "legacy"},
    "absolute": {
        "selfattention_layer_type": "selfattn",
        "pos_enc_layer_type": "abs_pos",
        "use_flash_attn": False,
    },
    "qk_norm": {
        "selfattention_layer_type": "selfattn",
        "pos_enc_layer_type": "abs_pos",
        "use_flash_attn": False,
        "qk_norm": True,
    },
}


@st.composite
def confs(draw) -> dict:
    heads = draw(st.integers(1, 8))
    return {
        "attention_heads": heads,
        "output_size": heads * draw(st.sampled_from([2, 4])),
        "linear_units": draw(st.integers(1, 9)),
        "num_blocks": draw(st.integers(1, 2)),
        "macaron_style": draw(st.booleans()),
        "use_cnn_module": draw(st.booleans()),
        "normalize_before": draw(st.booleans()),
        "concat_after": draw(st.booleans()),
        "cnn_module_kernel": 3,
        **draw(st.sampled_from(list(ATTENTION.values()))),
    }


def build(conf: dict, seed: int) -> L0ConformerEncoder:
    torch.manual_seed(seed)
    encoder = L0ConformerEncoder(20, **conf).double().eval()
    disturb_(encoder, seed)
    return encoder


def output(encoder, seed: int = 0) -> torch.Tensor:
    feats, lengths = probe(20, LENGTHS, seed)
    with torch.no_grad():
        out, valid, _ = encoder(feats, lengths)
    return torch.cat([o[:n] for o, n in zip(out, valid, strict=True)])


def assert_close(one, two):
    assert float((one - two).abs().max()) <= 1e-10 * float(one.abs().max())


def random_keep(draw, size: int) -> list[int]:
    how = draw(st.sampled_from(["none", "one", "all", "some"]))
    if how == "none":
        return []
    if how == "one":
        return [draw(st.integers(0, size - 1))]
    if how == "all":
        return list(range(size))
    return sorted(draw(st.sets(st.integers(0, size - 1))))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), conf=confs(), seed=st.integers(0, 1000))
def test_masked_equals_cut_and_cost_equals_count(data, conf, seed):
    encoder = build(conf, seed)
    plan = {
        site.name: {k: random_keep(data.draw, n) for k, n in site.sizes.items()}
        for site in encoder.sites()
    }
    decide_(encoder.sites(), plan)
    masked, budget = output(encoder), encoder.budget()

    small = copy.deepcopy(encoder)
    cut_(small, plan_of(encoder.sites()))
    assert_close(masked, output(small))
    numel = sum(p.numel() for p in small.parameters())
    assert round(budget.total * (1 - budget.actual())) == numel
    assert budget.total * (1 - float(budget.expected())) == pytest.approx(numel)

    # from its structure alone the cut network is rebuilt, and it is not cut twice
    rebuilt = L0ConformerEncoder(20, **conf, units=[], structure=small.structure())
    rebuilt.double().eval().load_state_dict(small.state_dict())
    assert torch.equal(output(small), output(rebuilt))
    assert structure_of(rebuilt.sites()) == small.structure()


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(conf=confs(), seed=st.integers(0, 1000))
def test_folding_soft_gates_changes_nothing(conf, seed):
    encoder = build(conf, seed)
    generator = torch.Generator().manual_seed(seed)
    for site in encoder.sites():
        for gate in site.gates.values():
            alpha = torch.randn(gate.log_alpha.shape, generator=generator)
            gate.log_alpha.data.copy_(3 * alpha)
    soft = output(encoder)
    decide_(encoder.sites(), plan_of(encoder.sites()))
    assert_close(soft, output(encoder))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    conf=confs(),
    seed=st.integers(0, 1000),
    share=st.floats(0.05, 1.0),
)
def test_selection_meets_the_target_with_the_least_probable_units(conf, seed, share):
    encoder = build(conf, seed)
    generator = torch.Generator().manual_seed(seed)
    for site in encoder.sites():
        for gate in site.gates.values():
            gate.log_alpha.data.normal_(generator=generator)
    budget = encoder.budget()
    target = share * budget.reachable()
    if not 0 < target < 1:
        return
    plan = select(budget, target)
    decide_(encoder.sites(), plan)
    assert budget.actual() >= target - 1e-12
    small = copy.deepcopy(encoder)
    cut_(small, plan)
    assert 1 - count_parameters(small) / budget.total == pytest.approx(budget.actual())


def test_fine_units_land_within_a_tenth_of_a_point():
    torch.manual_seed(0)
    encoder = L0ConformerEncoder(80, output_size=96, attention_heads=4, linear_units=384)
    for site in encoder.sites():
        for gate in site.gates.values():
            gate.log_alpha.data.normal_()
    budget = encoder.budget()
    for target in (0.1, 0.3, 0.5, 0.6):
        plan = select(budget, target)
        trial = copy.deepcopy(encoder)
        decide_(trial.sites(), plan)
        assert 0 <= trial.budget().actual() - target <= 1e-3
    with pytest.raises(ValueError, match="beyond what the units reach"):
        select(budget, 0.99)


def test_gradient_of_the_expected_cost_equals_finite_differences():
    encoder = build(
        {
            "attention_heads": 2,
            "output_size": 4,
            "linear_units": 3,
            "num_blocks": 1,
            "macaron_style": True,
            "cnn_module_kernel": 3,
        },
        0,
    )
    gates = [g.log_alpha for s in encoder.sites() for g in s.gates.values()]
    for alpha in gates:
        alpha.data.normal_()
    budget = encoder.budget()
    analytic = torch.autograd.grad(budget.expected(), gates)
    for alpha, gradient in zip(gates, analytic, strict=True):
        for i in range(alpha.numel()):
            values = []
            for step in (1e-5, -1e-5):
                alpha.data[i] += step
                values.append(float(budget.expected()))
                alpha.data[i] -= step
            assert (values[0] - values[1]) / 2e-5 == pytest.approx(
                float(gradient[i]), abs=1e-9
            )


def test_expected_cost_is_the_mean_over_sampled_structures():
    encoder = build(
        {
            "attention_heads": 2,
            "output_size": 4,
            "linear_units": 3,
            "num_blocks": 1,
            "cnn_module_kernel": 3,
        },
        0,
    )
    torch.manual_seed(1)
    for site in encoder.sites():
        for gate in site.gates.values():
            gate.log_alpha.data.normal_(-1.5)
    budget, found = encoder.budget(), []
    for _ in range(4000):
        opened = [
            {k: torch.ones(n).double() for k, n in site.sizes.items()}
            | {k: (g.sample() > 0).double() for k, g in site.gates.items()}
            for site in budget.sites
        ]
        found.append(float(budget.sparsity(opened)))
    assert float(budget.expected()) == pytest.approx(sum(found) / len(found), abs=0.01)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("training", [False, True])
def test_open_gates_are_stock_bit_for_bit(attention, training):
    """In evaluation; and in warm-up training, from the same random state."""
    conf = {
        "output_size": 16,
        "attention_heads": 4,
        "linear_units": 12,
        "num_blocks": 2,
        "macaron_style": True,
        "stochastic_depth_rate": 0.2,
        **ATTENTION[attention],
    }
    torch.manual_seed(0)
    stock = ConformerEncoder(20, **conf).train(training)
    ours = L0ConformerEncoder(20, **conf).train(training)
    missing = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith(".log_alpha") for key in missing.missing_keys)
    gates = sum(len(site.gates) for site in ours.sites())
    assert len(missing.missing_keys) == gates > 0
    feats, lengths = probe(20, LENGTHS)
    outputs = []
    for encoder in (stock, ours):
        torch.manual_seed(1)
        out = encoder(feats.float(), lengths)[0]
        out.square().sum().backward()
        outputs.append(out)
    assert torch.equal(*outputs)
    theirs = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, theirs[name].grad), name


def test_a_cut_network_is_pruned_again():
    conf = {"output_size": 16, "attention_heads": 4, "linear_units": 12, "num_blocks": 2}
    structure = {
        "encoders.0.self_attn": {"heads": 0},
        "encoders.1.self_attn": {"heads": 3},
        "encoders.0.conv_module": {"conv_modules": 0, "conv_channels": 0},
        "encoders.1.conv_module": {"conv_modules": 1, "conv_channels": 5},
        "encoders.1.feed_forward": {"ffn_channels": 7},
    }
    encoder = L0ConformerEncoder(20, **conf, structure=structure).double().eval()
    disturb_(encoder)
    budget = encoder.budget()
    assert budget.total == count_parameters(encoder)
    plan = select(budget, 0.2)
    decide_(encoder.sites(), plan)
    small = copy.deepcopy(encoder)
    cut_(small, plan)
    assert_close(output(encoder), output(small))
    assert count_parameters(small) == round(budget.total * (1 - budget.actual()))
    assert set(small.structure()) == {s.name for s in encoder.sites()}


def test_every_kind_of_unit_is_independent():
    conf = {"output_size": 16, "attention_heads": 4, "linear_units": 12, "num_blocks": 1}
    for kind in UNITS:
        encoder = L0ConformerEncoder(20, **conf, units=[kind])
        found = {k for site in encoder.sites() for k in site.gates}
        assert found == {kind}
        assert 0 < encoder.budget().reachable() < 1
    bare = L0ConformerEncoder(20, **conf, units=[])
    assert Budget(bare.sites(), 1).reachable() == 0
    assert bare.state_dict().keys() == ConformerEncoder(20, **conf).state_dict().keys()

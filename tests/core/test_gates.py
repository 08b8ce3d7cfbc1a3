import copy
import pickle

import pytest
import torch

from espnet_l0prune.core.gates import (
    BETA,
    LEFT,
    RIGHT,
    SHIFT,
    AdaptiveDropout,
    HardConcrete,
    LogAlpha,
    draw_all,
)
from espnet_l0prune.core.hooks import ScaleInput, SurvivorNorm, remove_gates_, spread
from espnet_l0prune.core.ranges import RANGES

LEAST_OPEN = RANGES["encoder_conf"]["open_probability"].low


def gates_at(values) -> HardConcrete:
    gate = HardConcrete(len(values))
    gate.log_alpha.data = torch.tensor(values)
    return gate


def test_samples_follow_the_hard_concrete_distribution():
    torch.manual_seed(0)
    gate = gates_at([-3.0, -1.0, 0.0, 1.0, 3.0]).double()
    gate.sampling = True
    samples = []
    for _ in range(20_000):
        gate.draw_()
        samples.append(gate())
    samples = torch.stack(samples)
    opened = (samples > 0).double().mean(0)
    torch.testing.assert_close(opened, gate.probability(), atol=0.012, rtol=0)
    # P(z < 1) in closed form, from the inverse of the stretched sigmoid
    t = (1 - LEFT) / (RIGHT - LEFT)
    below_one = torch.sigmoid(BETA * torch.logit(torch.tensor(t)) - gate.log_alpha)
    found = (samples < 1).double().mean(0)
    torch.testing.assert_close(found, below_one.detach(), atol=0.012, rtol=0)


def test_adaptive_dropout_draws_from_0_and_1():
    torch.manual_seed(0)
    alphas = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).double()
    gate = AdaptiveDropout(5 * 20_000).double()
    gate.log_alpha.data = alphas.repeat(20_000)
    gate.sampling = True
    gate.draw_()
    z = gate()
    assert set(z.tolist()) <= {0.0, 1.0}
    (gradient,) = torch.autograd.grad(z.sum(), gate.log_alpha)
    relaxed = torch.sigmoid((gate.noise + gate.log_alpha) / BETA)
    torch.testing.assert_close(gradient, relaxed * (1 - relaxed) / BETA)
    torch.testing.assert_close(gate.probability(), torch.sigmoid(gate.log_alpha))
    share, slope = (values.view(20_000, 5).mean(0) for values in (z.detach(), gradient))
    torch.testing.assert_close(share, torch.sigmoid(alphas), atol=0.012, rtol=0)
    assert slope[2] > slope[0]  # what is undecided moves most
    closed_or_open = gate.eval()(), gate.is_open()
    assert all(found[:5].tolist() == [0, 0, 0, 1, 1] for found in closed_or_open)


@pytest.mark.parametrize("kind", [HardConcrete, AdaptiveDropout])
def test_a_new_gate_is_transparent_bit_for_bit(kind):
    x = torch.randn(3, 7, 8)
    for p in (RANGES["encoder_conf"]["open_probability"].low, 0.99, 0.9999):
        gate = kind(4, open_probability=p)
        torch.testing.assert_close(gate.probability(), torch.full((4,), p).double())
        assert torch.equal(ScaleInput(gate, inner=2).scaled(x, -1), x)


def test_a_gate_of_less_than_its_range_would_not_start_dense():
    low = RANGES["encoder_conf"]["open_probability"].low
    assert HardConcrete(1, open_probability=low)() == 1 > HardConcrete(1, low - 1e-3)()


@pytest.mark.parametrize("gate_type", [HardConcrete, AdaptiveDropout])
def test_gates_that_rest_still_have_a_gradient(gate_type):
    """Of 0: a distributed training waits for one of every parameter."""
    gate = gate_type(3)
    for decided in (False, True):
        if decided:
            gate.decide_(torch.tensor([True, False, True]))
        gate.log_alpha.grad = None
        gate().sum().backward()
        assert torch.equal(gate.log_alpha.grad, torch.zeros(3))


def test_sampling_only_in_training_and_only_if_told():
    gate, one = HardConcrete(1000), torch.ones(1000)
    assert torch.equal(gate(), one)
    gate.sampling = True
    assert not torch.equal(gate(), one)
    assert torch.equal(gate.eval()(), one)


def test_all_readers_of_a_forward_see_one_sample():
    gate = HardConcrete(1000)
    gate.sampling = True
    draw_all(gate)
    first = gate()
    assert torch.equal(first, gate())
    draw_all(gate)
    assert not torch.equal(first, gate())
    copy.deepcopy(gate)  # nothing of a graph is kept


def test_layouts():
    gate = gates_at([100.0, -100.0])
    assert spread(gate(), 3, 1).tolist() == [1, 1, 1, 0, 0, 0]
    assert spread(gate(), 1, 2).tolist() == [1, 0, 1, 0]
    assert spread(gate(), 2, 2).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    assert ScaleInput(gate).scaled(torch.ones(1, 2, 3), 1).tolist() == [
        [[1] * 3, [0] * 3]
    ]
    whole = gates_at([-100.0])
    assert not ScaleInput(whole, inner=4).scaled(torch.ones(2, 3, 4), -1).any()


def test_gradient_reaches_log_alpha():
    torch.manual_seed(0)
    gate = gates_at([0.5] * 100)
    gate.sampling = True
    gate().sum().backward()
    assert (gate.log_alpha.grad > 0).any()
    assert (gate.log_alpha.grad >= 0).all()


@pytest.mark.parametrize("kind", [HardConcrete, AdaptiveDropout])
def test_decided_gates_are_exact_in_every_float_type(kind):
    keep = torch.tensor([True, False, True])
    for dtype in (torch.float32, torch.float64):
        gate = kind(3).to(dtype)
        assert not gate.is_decided()
        gate.decide_(keep)
        assert gate.is_decided()
        assert gate.values().tolist() == [1, 0, 1]
        assert gate.probability()[0] == 1
        assert gate.probability()[1] < 1e-40


def test_half_precision_input_stays_half():
    gate, x = HardConcrete(4), torch.ones(2, 4, dtype=torch.bfloat16)
    assert ScaleInput(gate).scaled(x, -1).dtype == torch.bfloat16
    assert gate.log_alpha.dtype == torch.float32


def test_the_tag_survives_deepcopy():
    gate = copy.deepcopy(HardConcrete(3))
    assert isinstance(gate.log_alpha, LogAlpha)
    assert torch.equal(pickle.loads(pickle.dumps(gate)).log_alpha, gate.log_alpha)


def test_the_tag_survives_saving(tmp_path):
    torch.save(HardConcrete(4), tmp_path / "gate.pth")
    gate = torch.load(tmp_path / "gate.pth", weights_only=False)
    assert isinstance(gate.log_alpha, LogAlpha)
    assert gate.log_alpha.requires_grad


def test_a_forward_that_failed_leaves_the_weight_alone():
    linear, gate = torch.nn.Linear(4, 2), gates_at([100.0, -100.0, 100.0, 0.0])
    for _ in range(2):  # two gates on one layer
        ScaleInput(gate).attach_(linear)
    expected = linear(torch.eye(4))
    for error in (ValueError, KeyboardInterrupt):

        def fail(*_, error=error):
            raise error

        hook = linear.register_forward_pre_hook(fail)
        with pytest.raises(error):
            linear(torch.eye(4))
        hook.remove()
        assert torch.equal(linear(torch.eye(4)), expected)
        assert "weight" not in linear.__dict__


def test_hooks_survive_deepcopy_and_pickle_with_their_own_gate():
    norm = torch.nn.LayerNorm(4)
    norm.gate = gates_at([100.0, -100.0, 100.0, 100.0])
    SurvivorNorm([norm.gate]).attach_(norm)
    x = torch.randn(3, 4)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert torch.equal(other(x), norm(x))
        other.gate.decide_(torch.tensor([True, True, True, False]))
        assert not torch.equal(other(x), norm(x))


def test_survivors_are_normalized_as_if_they_were_alone():
    norm = torch.nn.LayerNorm(5).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    norm.gate = gates_at([100.0, -100.0, 100.0, -100.0, 100.0])
    SurvivorNorm([norm.gate]).attach_(norm)
    x, kept = torch.randn(7, 5).double(), [0, 2, 4]
    alone = torch.nn.functional.layer_norm(
        x[:, kept], (3,), norm.weight[kept], norm.bias[kept], norm.eps
    )
    torch.testing.assert_close(norm(x)[:, kept], alone)
    assert not norm(x)[:, [1, 3]].any()


def test_gates_are_removed_without_a_trace():
    layer = torch.nn.Linear(4, 4)
    before = copy.deepcopy(layer)
    layer.gate = HardConcrete(4)
    SurvivorNorm([layer.gate]).attach_(layer)
    layer.register_forward_hook(lambda *_: None)
    remove_gates_(layer)
    assert list(layer.state_dict()) == list(before.state_dict())
    assert len(layer._forward_hooks) == 1  # a stranger's hook stays


@pytest.mark.parametrize("kind", [HardConcrete, AdaptiveDropout])
def test_where_a_gate_starts(kind):
    gate = kind(3, LEAST_OPEN)
    assert gate.is_new()
    assert gate.probability().tolist() == pytest.approx([LEAST_OPEN] * 3)
    assert gate.is_open().tolist() == [True] * 3
    gate.log_alpha.data[1] += 1e-3
    assert not gate.is_new()
    gate.espnet_initialization_fn()
    assert gate.is_new()
    assert not gate.is_decided()
    gate.log_alpha.data[:2] = torch.tensor([100.0, -100.0])
    assert not gate.is_decided()
    gate.decide_(torch.tensor([True, False, False]))
    assert gate.is_decided()
    assert gate.is_open().tolist() == [True, False, False]
    assert repr(gate) == f"{kind.__name__}(3)"


def test_values_without_noise():
    """From where 1.2 sigmoid(a) - 0.1 is 0 on, and to where it is 1."""
    gate = HardConcrete(4).double()
    edge = float(torch.logit(torch.tensor(0.1 / 1.2).double()))
    gate.log_alpha.data = torch.tensor([edge - 1e-6, edge + 1e-6, 0.0, -edge + 1e-6])
    assert gate.is_open().tolist() == [False, True, True, True]
    assert gate.values().tolist() == pytest.approx([0, 0, 0.5, 1], abs=1e-6)
    assert float(gate.values()[3]) == 1
    # P(z > 0) in closed form: of the noise that a gate needs
    expected = torch.sigmoid(gate.log_alpha + 2 / 3 * torch.log(torch.tensor(11.0)))
    torch.testing.assert_close(gate.probability(), expected.double())
    assert pytest.approx(1.5986, abs=1e-4) == SHIFT


def test_noise_is_drawn_only_where_it_is_used():
    gate = HardConcrete(4)
    gate.draw_()
    assert gate.noise is None
    gate.sampling = True
    gate.eval().draw_()
    assert gate.noise is None
    first = gate.train()()
    assert gate.noise is not None
    assert torch.equal(first, gate())
    relaxed = torch.sigmoid((gate.noise + gate.log_alpha) / (2 / 3))
    torch.testing.assert_close(first, (1.2 * relaxed - 0.1).clamp(0, 1))

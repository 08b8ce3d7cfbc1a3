import copy
import pickle

import pytest
import torch

from espnet_l0prune.core.gates import (
    BETA,
    LEAST_OPEN,
    LEFT,
    RIGHT,
    HardConcrete,
    LogAlpha,
)


def gates_at(values) -> HardConcrete:
    gate = HardConcrete(len(values))
    gate.log_alpha.data = torch.tensor(values)
    return gate


def test_samples_follow_the_hard_concrete_distribution():
    torch.manual_seed(0)
    gate = gates_at([-3.0, -1.0, 0.0, 1.0, 3.0]).double()
    samples = torch.stack([gate.sample() for _ in range(20_000)])
    opened = (samples > 0).double().mean(0)
    torch.testing.assert_close(opened, gate.probability(), atol=0.012, rtol=0)
    # P(z < 1) in closed form, from the inverse of the stretched sigmoid
    t = (1 - LEFT) / (RIGHT - LEFT)
    below_one = torch.sigmoid(BETA * torch.logit(torch.tensor(t)) - gate.log_alpha)
    found = (samples < 1).double().mean(0)
    torch.testing.assert_close(found, below_one.detach(), atol=0.012, rtol=0)


def test_a_new_gate_is_transparent_bit_for_bit():
    x = torch.randn(3, 7, 8)
    for p in (LEAST_OPEN, 0.99, 0.9999):
        gate = HardConcrete(4, width=2, open_probability=p)
        torch.testing.assert_close(gate.probability(), torch.full((4,), p).double())
        assert torch.equal(gate(x), x)


@pytest.mark.parametrize("p", [0.0, 0.5, 0.98, 1.0, float("nan")])
def test_a_gate_that_would_not_start_dense_is_refused(p):
    with pytest.raises(ValueError, match="open_probability"):
        HardConcrete(4, open_probability=p)


def test_sampling_only_in_training_and_only_if_told():
    gate, x = HardConcrete(1000), torch.ones(1000)
    assert torch.equal(gate(x), x)
    gate.sampling = True
    assert not torch.equal(gate(x), x)
    assert torch.equal(gate.eval()(x), x)


def test_layouts():
    gate = gates_at([100.0, -100.0])
    gate.width = 3
    assert gate(torch.ones(1, 6)).tolist() == [[1, 1, 1, 0, 0, 0]]
    channels = gates_at([100.0, -100.0])
    channels.dim = 1
    assert channels(torch.ones(1, 2, 3)).tolist() == [[[1] * 3, [0] * 3]]
    whole = gates_at([-100.0])
    whole.width = None
    assert not whole(torch.ones(2, 3, 4)).any()


def test_gradient_reaches_log_alpha():
    torch.manual_seed(0)
    gate = gates_at([0.5] * 100)
    gate.sampling = True
    gate(torch.ones(100)).sum().backward()
    assert (gate.log_alpha.grad > 0).any()
    assert (gate.log_alpha.grad >= 0).all()


def test_decided_gates_are_exact_in_every_float_type():
    keep = torch.tensor([True, False, True])
    for dtype in (torch.float32, torch.float64):
        gate = HardConcrete(3).to(dtype)
        assert not gate.is_decided()
        gate.decide_(keep)
        assert gate.is_decided()
        assert gate.values().tolist() == [1, 0, 1]
        assert gate.probability()[0] == 1
        assert gate.probability()[1] < 1e-40


def test_half_precision_input_stays_half():
    gate = HardConcrete(4)
    assert gate(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert gate.log_alpha.dtype == torch.float32


def test_the_tag_survives_deepcopy():
    gate = copy.deepcopy(HardConcrete(3))
    assert isinstance(gate.log_alpha, LogAlpha)
    assert torch.equal(pickle.loads(pickle.dumps(gate)).log_alpha, gate.log_alpha)

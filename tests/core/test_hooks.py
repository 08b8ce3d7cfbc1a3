"""Each way in which a gate acts on a layer, beside what it stands for."""

import pytest
import torch
from torch import nn

from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.hooks import (
    MaskInput,
    OwnWeight,
    ScaleInput,
    ScaleOutput,
    SurvivorNorm,
    spread,
)


def soft(*alphas: float) -> HardConcrete:
    gate = HardConcrete(len(alphas)).double()
    gate.log_alpha.data = torch.tensor(alphas).double()
    return gate


GATE = (-9.0, 0.5, -1.0, 9.0)  # values 0, between twice, and 1
LAYERS = {
    "linear": (lambda: nn.Linear(8, 8), (2, 5, 8)),
    "1d": (lambda: nn.Conv1d(8, 8, 3), (2, 8, 5)),
    "2d": (lambda: nn.Conv2d(8, 8, 3), (2, 8, 5, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("inner", "outer"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("hook", [ScaleInput, ScaleOutput])
def test_features_are_multiplied_by_their_units_gates(kind, inner, outer, hook):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer, gate, x = make().double(), soft(*GATE), torch.randn(shape).double()
    z = spread(gate(), inner, outer).view([-1] + [1] * (len(shape) - 2))
    z = z.flatten() if kind == "linear" else z
    assert sorted({float(v) for v in z.flatten()})[0] == 0 < z.max() == 1
    expected = layer(x * z) if hook is ScaleInput else layer(x) * z
    hook(gate, inner, outer).attach_(layer)
    torch.testing.assert_close(layer(x), expected)
    gate.log_alpha.data += 1  # the next forward reads the gates anew
    assert not torch.allclose(layer(x), expected)
    assert "weight" not in layer.__dict__


def test_one_gate_for_all_and_units_that_are_features():
    layer, x = nn.Linear(4, 4).double(), torch.randn(3, 4).double()
    plain = layer(x)
    ScaleOutput(soft(0.5), inner=4).attach_(layer)
    torch.testing.assert_close(layer(x), plain * soft(0.5)())
    other = nn.Linear(4, 4).double()
    plain = other(x)
    ScaleOutput(soft(*GATE)).attach_(other)
    torch.testing.assert_close(other(x), plain * soft(*GATE)())


def test_the_gates_of_an_input_and_the_weight_get_their_gradients():
    layer, gate, x = nn.Linear(4, 2).double(), soft(*GATE), torch.randn(3, 4).double()
    hooked = nn.Linear(4, 2).double()
    hooked.load_state_dict(layer.state_dict())
    ScaleInput(gate).attach_(hooked)
    gradients = []
    for value in (layer(x * gate()), hooked(x)):
        own = hooked if gradients else layer
        parameters = [own.weight, own.bias, gate.log_alpha]
        gradients.append(torch.autograd.grad(value.square().sum(), parameters))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_a_layers_own_weight_is_back_whatever_stood_in_front():
    layer = nn.Linear(4, 2)
    OwnWeight().attach_(layer)
    layer.__dict__["weight"] = torch.zeros(2, 4)
    x = torch.ones(1, 4)
    assert torch.equal(layer(x), x @ layer._parameters["weight"].T + layer.bias)


def test_closed_units_are_hidden_and_others_are_as_they_were():
    seen = []

    class Reader(nn.Module):
        def forward(self, *args):
            seen.append(args)

    reader, x, mask = Reader(), torch.randn(2, 3, 4).double(), torch.ones(2)
    MaskInput(soft(*GATE)).attach_(reader)
    reader(x, mask, None)
    expected = x.clone()
    expected[..., 0] = 0
    assert torch.equal(seen[0][0], expected)
    assert seen[0][1] is mask
    assert seen[0][2] is None


@pytest.mark.parametrize("closed", [[1], [1, 2], [0, 1, 3], [0, 1, 2, 3]])
def test_norms_of_few_survivors(closed):
    """Of one alone it is the bias, of none 0."""
    torch.manual_seed(0)
    norm, x = nn.LayerNorm(4).double(), torch.randn(5, 4).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    gates = [soft(1.0, 1.0, 1.0, 1.0), soft(1.0, 1.0, 1.0, 1.0)]
    for i, unit in enumerate(closed):
        gates[i % 2].log_alpha.data[unit] = -9.0
    for gate in gates:  # a unit is open where all its gates are
        SurvivorNorm([gate]).attach_(norm)
    assert len(norm._forward_hooks) == 1
    kept = [i for i in range(4) if i not in closed]
    expected = torch.zeros(5, 4).double()
    if kept:
        rows = x[:, kept]
        rows = rows - rows.mean(1, keepdim=True)
        rows = rows / (rows.square().mean(1, keepdim=True) + norm.eps).sqrt()
        expected[:, kept] = rows * norm.weight[kept] + norm.bias[kept]
    torch.testing.assert_close(norm(x), expected)


def test_a_norm_whose_units_are_not_last():
    """As of channels in (batch, channels, time)."""

    class Transposed(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.transpose(1, 2)).transpose(1, 2)

    plain, first, x = (
        nn.LayerNorm(4).double(),
        Transposed(4).double(),
        torch.randn(2, 4, 5),
    )
    first.load_state_dict(plain.state_dict())
    x, gate = x.double(), soft(9.0, -9.0, 9.0, 9.0)
    SurvivorNorm([gate]).attach_(plain)
    SurvivorNorm([gate], dim=1).attach_(first)
    torch.testing.assert_close(first(x), plain(x.transpose(1, 2)).transpose(1, 2))

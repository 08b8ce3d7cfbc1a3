"""Layers that are fitted in closed form, against second ways to compute the same."""

import copy

import pytest
import torch
from torch import nn

from espnet_l0prune.core.reconstruction import (
    RIDGES,
    Moments,
    Writer,
    _inputs,
    _outputs,
    reconstruct_,
)
from espnet_l0prune.core.replacements import Constant


def rows(n: int, inputs: int, outputs: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator).double()
    return x, torch.randn(n, outputs, generator=generator).double()


def moments_of(*parts) -> Moments:
    moments = Moments.of_none(*parts[0])
    for x, r in parts:
        moments.add_(x, r)
    return moments


@pytest.mark.parametrize("ridge", RIDGES)
@pytest.mark.parametrize("intercept", [False, True])
def test_solving_is_least_squares_on_augmented_rows(ridge, intercept):
    x, r = rows(30, 6, 3)
    if intercept:
        x[:, -1] = 1
    sizes = x.square().sum(0).sqrt() * ridge**0.5
    if intercept:
        sizes[-1] = 0
    more = torch.cat([x, sizes.diag()]), torch.cat([r, torch.zeros(6, 3).double()])
    expected = torch.linalg.lstsq(*more).solution
    found = moments_of((x, r)).solve(ridge, intercept)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_inputs_that_are_never_used_are_left_alone():
    x, r = rows(30, 6, 3)
    x[:, 2] = 0
    change = moments_of((x, r)).solve(1e-8, intercept=False)
    assert bool(change.isfinite().all())
    assert float(change[2].abs().max()) == 0


def test_moments_of_parts_are_those_of_the_whole_and_give_its_error():
    x, r = rows(30, 6, 3)
    change = rows(6, 1, 3, seed=1)[1]
    parts = (x[:11], r[:11]), (x[11:], r[11:])
    merged = moments_of(parts[0])
    merged.merge_(moments_of(parts[1]))
    expected = float((r - x @ change).square().mean())
    for moments in (moments_of((x, r)), moments_of(*parts), merged):
        assert moments.error(change) == pytest.approx(expected)
        assert moments.error() == pytest.approx(float(r.square().mean()))


LAYERS = {
    "linear": (nn.Linear(6, 4), (2, 9, 6)),
    "without a bias": (nn.Linear(6, 4, bias=False), (2, 9, 6)),
    "1d": (nn.Conv1d(6, 4, 3, stride=2, padding=2, dilation=2), (2, 6, 17)),
    "pointwise": (nn.Conv1d(6, 4, 1), (2, 6, 9)),
    "2d": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1)), (2, 3, 9, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_linear_in_its_weights(name):
    layer, shape = LAYERS[name]
    layer = copy.deepcopy(layer).double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    weights = layer.weight.flatten(1).T
    if layer.bias is not None:
        weights = torch.cat([weights, layer.bias[None]])
    expected = _outputs(layer, layer(x))
    torch.testing.assert_close(_inputs(layer, x) @ weights, expected)


class Chain(nn.Module):
    """A stream of 6 features to which two branches add, the second one halved."""

    def __init__(self, channels: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.Identity(), nn.Identity()])
        self.first = nn.ModuleList([nn.Linear(6, channels) for _ in self.norms])
        self.last = nn.ModuleList([nn.Linear(channels, 6) for _ in self.norms])
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        for i, norm in enumerate(self.norms):
            y = self.first[i](norm(x))
            if not isinstance(self.last[i], Constant):
                y = torch.tanh(y)
            x = x + self.last[i](y) / (1 + i)
        return x


WRITERS = [
    Writer("last.0", "last.0", "norms.0"),
    Writer("last.1", "last.1", "norms.1", 0.5),
]


def chains(channels: int = 5) -> tuple[Chain, Chain]:
    torch.manual_seed(0)
    return Chain(channels).double().eval(), Chain(channels).double().eval()


def utterances(n: int = 8) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    xs = torch.randn(n, 1, 20, 6, generator=generator).double()
    return [{"x": x} for x in xs]


def call(model, utterance):
    return model(**utterance)


def distance(one, two, heard) -> float:
    with torch.no_grad():
        return sum(float((call(one, u) - call(two, u)).square().mean()) for u in heard)


def test_channels_that_repeat_others_are_missed_by_nobody():
    whole, _ = chains(8)
    for first, last in zip(whole.first, whole.last, strict=True):
        with torch.no_grad():
            first.weight[4:], first.bias[4:] = first.weight[:4] + 0, first.bias[:4] + 0
            last.weight[:, :4].mul_(0.2)  # so that the halves differ
    cut = copy.deepcopy(whole)
    for i in (0, 1):
        cut.first[i].weight.data = cut.first[i].weight[:4].detach()
        cut.first[i].bias.data = cut.first[i].bias[:4].detach()
        cut.last[i].weight.data = cut.last[i].weight[:, :4].detach()
    heard = utterances()
    assert distance(whole, cut, heard) > 0.01
    reconstruct_(cut, whole, WRITERS, heard, call)
    assert distance(whole, cut, heard) < 1e-12


def test_an_emptied_branch_writes_the_mean_of_what_is_missing():
    whole, cut = chains()
    cut.load_state_dict(whole.state_dict())
    cut.last[0] = Constant(torch.zeros(6).double(), 6, {})
    heard = utterances()
    reconstruct_(cut, whole, WRITERS[:1], heard, call)
    x = torch.cat([u["x"] for u in heard])
    with torch.no_grad():
        wrote = whole.last[0](torch.tanh(whole.first[0](x)))
    torch.testing.assert_close(cut.last[0].value.data, wrote.mean((0, 1)))


def test_the_second_layer_brings_the_stream_back_where_the_first_cannot():
    whole, cut = chains()
    cut.load_state_dict(whole.state_dict())
    with torch.no_grad():  # for good: only the second writer is fitted
        cut.last[0].bias += 1
    heard = utterances()
    reconstruct_(cut, whole, WRITERS[1:], heard, call)
    streams = [torch.cat([call(m, u) for u in heard]).mean((0, 1)) for m in (whole, cut)]
    torch.testing.assert_close(*streams)


def test_no_layer_changes_where_nothing_is_better_for_the_held_out():
    """Without biases a chain is odd, so that -x lacks the opposite of what x does."""
    whole, cut = chains()
    for layer in (*whole.first, *whole.last):
        nn.init.zeros_(layer.bias)
    cut.load_state_dict(whole.state_dict())
    cut.last[1] = Constant(torch.zeros(6).double(), 6, {})
    x = utterances(1)[0]["x"]
    reconstruct_(cut, whole, WRITERS[1:], [{"x": x}] * 3 + [{"x": -x}], call)
    assert float(cut.last[1].value.abs().max()) == 0
    reconstruct_(cut, whole, WRITERS[1:], [{"x": x}] * 4, call)
    assert float(cut.last[1].value.abs().max()) > 0


def test_equal_networks_stay_as_they_are():
    whole, cut = chains()
    cut.load_state_dict(whole.state_dict())
    reconstruct_(cut, whole, WRITERS, utterances(), call)
    assert all(torch.equal(w, cut.state_dict()[n]) for n, w in whole.state_dict().items())


def test_layers_that_have_gone_or_cannot_be_fitted_are_left_alone():
    whole, cut = chains()
    cut.last[0] = Constant(None, 6, {})
    cut.last[1] = nn.Sequential(cut.last[1])
    before = copy.deepcopy(cut.state_dict())
    gone = [*WRITERS, Writer("first.7", "first.8")]
    reconstruct_(cut, whole, gone, utterances(), call)
    assert all(torch.equal(before[name], w) for name, w in cut.state_dict().items())


def test_a_layer_that_no_utterance_reaches():
    whole, cut = chains()
    with pytest.raises(ValueError, match="without one of its layers; expected a model"):
        reconstruct_(cut, whole, [Writer("unused", "unused")], utterances(), call)

"""What is closed together, in numbers that can be checked by hand."""

import pytest
import torch

from espnet_l0prune.core.candidates import candidates_of, closing, left_out, scores_of
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.selection import select
from espnet_l0prune.testing.models import budget, disturb_, model

UNITS = ["heads", "ffn_channels", "conv_modules", "conv_channels", "frontend_channels"]


def made(units=UNITS):
    net = model(encoder_conf={"units": units}).eval()
    disturb_(net)
    return net


@pytest.mark.parametrize("units", [UNITS, [*UNITS, "blocks"], ["frontend_channels"]])
def test_each_gate_and_each_block_is_a_candidate(units):
    counted = budget(made(units))
    found = candidates_of(counted)
    gates = [one for one in found if one.kind is not None]
    assert [(one.place, one.kind) for one in gates] == [
        (site.name, kind) for site, kind in counted.gates
    ]
    blocks = [one for one in found if one.kind is None]
    own = "heads" in units and "blocks" not in units
    assert [one.place for one in blocks] == (["encoders.0", "encoders.1"] if own else [])
    for block in blocks:
        inside = [one for one in gates if one.place.startswith(f"{block.place}.")]
        assert block.whole == {k: v for one in inside for k, v in one.whole.items()}
        assert block.half is None
    for one in gates:
        ((key, gone),) = one.whole.items()
        size = len(counted.gates[key].log_alpha)
        assert len(gone) == size - (one.kind == "frontend_channels")
        assert (one.half is None) == (size == 1)
        if one.half is not None:
            assert torch.equal(one.half[key], gone[: size // 2])


def test_weak_units_come_first():
    net = made()
    layer = net.encoder.encoders[1].feed_forward
    norms = layer.w_1.weight.square().sum(1) + layer.w_1.bias.square()
    norms = norms + layer.w_2.weight.square().sum(0)
    (found,) = (
        one
        for one in candidates_of(budget(net))
        if one.place == "encoders.1.feed_forward"
    )
    (half,) = found.half.values()
    assert sorted(half.tolist()) == sorted(norms.argsort()[: len(norms) // 2].tolist())


def test_gates_are_as_they_were_even_after_an_error():
    net = made()
    counted = budget(net)
    before = counted.log_alpha().clone()
    block = candidates_of(counted)[-1]
    with closing(block.whole):
        assert counted.actual()["params"] > 0.1
    assert torch.equal(counted.log_alpha(), before)
    with pytest.raises(ZeroDivisionError), closing(block.whole):
        _ = 1 / 0
    assert torch.equal(counted.log_alpha(), before)
    with closing({}):
        assert counted.actual()["params"] == 0


def test_what_a_plan_leaves_out():
    counted = budget(made())
    plan = select(counted, {"params": 0.5})
    with closing(left_out(counted, plan)):
        kept = {(s.name, k): s.survivors(k).nonzero().flatten() for s, k in counted.gates}
    assert {key: units.tolist() for key, units in kept.items()} == {
        (site.name, kind): plan.units(site, kind) for site, kind in counted.gates
    }
    assert not any(map(len, left_out(counted, Plan({})).values()))


@pytest.mark.parametrize(
    ("half", "whole", "weak", "strong"),
    [
        (1.0, 4.0, 1 / 6, 3 / 6),
        (3.0, 4.0, 4 / 12, 4 / 12),  # the others would be cheaper, but not alone
        (0.0, 0.0, 0.0, 0.0),
        (5.0, 4.0, 4 / 12, 4 / 12),
        (None, 4.0, 4 / 12, 4 / 12),
    ],
)
def test_units_share_the_harm(half, whole, weak, strong):
    counted = budget(made())
    candidates = candidates_of(counted)
    harms = [(half, whole)] * len(candidates)
    scores = dict(zip(counted.gates, scores_of(counted, candidates, harms), strict=True))
    for one in candidates:
        for key, gone in one.whole.items():
            if key.kind == "ffn_channels":
                assert scores[key][gone[:6]].tolist() == pytest.approx([weak] * 6)
                assert scores[key][gone[6:]].tolist() == pytest.approx([strong] * 6)
            if key.kind == "frontend_channels":
                assert scores[key].isinf().sum() == 1
                assert float(scores[key][gone].sum()) == pytest.approx(whole)

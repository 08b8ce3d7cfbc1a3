"""Gates that start from an importance that the warm-up measures: `gate_start`."""

import copy

import pytest
import torch
from torch import Tensor

from espnet_l0prune.core.gate_start import LEAST_OPEN
from espnet_l0prune.core.gates import SLOPE, HardConcrete, LogAlpha
from espnet_l0prune.core.importance import loss_of, per_cost, taylor
from espnet_l0prune.core.phases import MEASURED
from espnet_l0prune.core.schedules import LinearSparsityScheduler
from espnet_l0prune.testing.models import budget, disturb_
from espnet_l0prune.testing.updates import batch, train
from tests.plugin.test_training import SCHEDULE, gates, start

LENGTHS = {**SCHEDULE, "warmup_steps": MEASURED}
MEASURING = {
    "sparsity_scheduler_conf": {**LENGTHS, "gate_start": "taylor"},
    "sparsity_constraint": "projected",
    "sparsity_constraint_conf": {},
}
ALIKE = {**MEASURING, "sparsity_scheduler_conf": LENGTHS}
STILL = {"lr": 0.0, "betas": (0.9, 0.999999), "gate_lr": 0.3}  # all updates count alike
NO_DROPOUT = dict.fromkeys(("dropout_rate", "positional_dropout_rate"), 0.0)
FFN = "encoders.0.feed_forward"


def starts(net) -> Tensor:
    return torch.cat([gate.log_alpha.detach() for gate in gates(net)])


def measured(net, optimizer) -> list[Tensor]:
    """(dL/dz)^2 of each gate, as measured so far."""
    alphas = [gate.log_alpha for gate in gates(net)]
    square = optimizer.moments(alphas)[1] / SLOPE**2
    return [*square.split([len(alpha) for alpha in alphas])]


def test_it_is_the_one_shot_importance_of_the_same_batches():
    """Which sums w dL/dw over weights; here it is the gates' own gradient."""
    quiet = {"encoder_conf": NO_DROPOUT, "decoder_conf": NO_DROPOUT}
    net, optimizer = start(**MEASURING, **quiet, optim_conf=STILL)
    train(net, optimizer, range(MEASURED - 1), clip=float("inf"))
    found = measured(net, optimizer)
    data = [batch(i) for i in range(MEASURED - 1)]
    scores = taylor(budget(net), net.train(), data)
    for mine, score in zip(found, scores, strict=True):
        torch.testing.assert_close(mine.float(), score, rtol=1e-2, atol=1e-9)
    data.append(batch(MEASURED - 1))
    scores = taylor(budget(net), net.train(), data)
    train(net, optimizer, range(MEASURED - 1, MEASURED), clip=float("inf"))
    price = torch.cat(per_cost(budget(net), scores, ["params"]))
    gate, n = gates(net)[0], len(price)
    place, least = (gate.log_alpha_at(p) for p in (0.99, LEAST_OPEN))
    ranks = (torch.arange(n) + 0.5) / n
    expected = torch.empty(n)
    expected[price.argsort()] = (place + (place - least) * (2 * ranks - 1)).float()
    near = (starts(net) - expected).abs() * n / (place - least) / 2  # in ranks
    assert near.max() < 2  # neighbours may change places


@pytest.mark.parametrize("units", ["all", ["blocks", "width"]])
def test_each_kind_has_the_slope_of_its_gate(units):
    """By finite differences, in float64."""
    no_ctc = {"ctc_weight": 0.0}  # whose loss is in float32
    net, _ = start(**MEASURING, encoder_conf={"units": units}, model_conf=no_ctc)
    net = net.double().train()
    disturb_(net)
    data = {k: v.double() if v.is_floating_point() else v for k, v in batch().items()}

    def loss() -> float:
        torch.manual_seed(3)  # dropout
        return loss_of(net, data)

    loss().backward()
    step, kinds = 1e-6, set()
    for (site, kind), gate in budget(net).gates.items():
        unit, was = len(gate.log_alpha) - 1, gate.log_alpha.detach().clone()
        slope = float(gate.log_alpha.grad[unit]) / SLOPE
        before = float(loss())
        t = (1 - step + 0.1) / 1.2
        gate.log_alpha.data[unit] = torch.logit(torch.tensor(t, dtype=was.dtype))
        assert float(gate()[unit]) == pytest.approx(1 - step, abs=1e-12)
        found = (before - float(loss())) / step
        gate.log_alpha.data.copy_(was)
        assert found == pytest.approx(slope, rel=1e-3, abs=1e-5), (site.name, kind)
        kinds.add(kind)
    assert {"blocks", "width"} <= kinds


@pytest.mark.parametrize("gate", ["hard_concrete", "adaptive_dropout"])
def test_the_ramp_begins_with_the_dense_network(gate):
    net, optimizer = start(**MEASURING, encoder_conf={"gate": gate})
    before = starts(net)
    train(net, optimizer, range(MEASURED - 1))
    assert torch.equal(starts(net), before)
    train(net, optimizer, range(MEASURED - 1, MEASURED))
    assert net.controller.phase == "ramp"
    assert all(bool((each.values() == 1).all()) for each in gates(net))
    assert net.controller.budget.actual() == {"params": 0, "macs": 0}
    opened = torch.cat([each.probability() for each in gates(net)])
    assert LEAST_OPEN < float(opened.min()) < 0.983
    assert 0.994 < float(opened.max()) < 0.9946
    assert float(starts(net).mean()) == pytest.approx(float(before.mean()), abs=1e-5)
    assert float(opened.mean()) == pytest.approx(1 - 0.01058, abs=1e-5)
    assert not any(gate.log_alpha in optimizer.state for gate in gates(net))
    train(net, optimizer, range(MEASURED, MEASURED + 12))
    assert net.controller.phase == "frozen"
    assert 0.3 <= budget(net).actual()["params"] <= 0.35


def test_units_that_do_nothing_start_lowest_and_alike():
    net, optimizer = start(**MEASURING, optim_conf=STILL)
    nothing = [1, 5, 8]
    net.encoder.get_submodule(FFN).w_2.weight.data[:, nothing] = 0
    train(net, optimizer, range(MEASURED))
    units = net.encoder.get_submodule(FFN).ffn_channels_gate.log_alpha.detach()
    lowest = starts(net).sort().values[:3]
    assert sorted(units.argsort()[:3].tolist()) == nothing
    assert torch.equal(units[nothing].sort().values, lowest)


@pytest.mark.parametrize("clip", [0.5, float("inf")])
def test_the_warm_up_trains_as_without_it(clip):
    """Also where gradients are clipped, and random numbers are drawn as before."""
    made = []
    for changes in (ALIKE, MEASURING):
        net, optimizer = start(**changes)
        history = train(net, optimizer, range(MEASURED), clip=clip)
        made.append((net, history, torch.get_rng_state()))
    (one, first, state), (other, second, same) = made
    assert torch.equal(state, same)
    assert [h["loss"] for h in first] == [h["loss"] for h in second]
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) or isinstance(a, LogAlpha), name
    assert len(starts(one).unique()) == 1 < len(starts(other).unique())


@pytest.mark.parametrize("stop", [1, MEASURED - 1, MEASURED, MEASURED + 3])
def test_a_resumed_run_measures_on(stop, tmp_path):
    net, optimizer = start(**MEASURING)
    train(net, optimizer, range(MEASURED + 5))
    half, half_optimizer = start(**MEASURING)
    train(half, half_optimizer, range(stop))
    states = {"model": half.state_dict(), "optimizers": [half_optimizer.state_dict()]}
    torch.save(states, tmp_path / "checkpoint.pth")
    states = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    other, other_optimizer = start(seed=5, **MEASURING)
    other.load_state_dict(states["model"])
    other_optimizer.load_state_dict(states["optimizers"][0])
    train(other, other_optimizer, range(stop, MEASURED + 5))
    for (name, a), b in zip(
        net.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert net.controller.multipliers == other.controller.multipliers


def test_gradients_that_are_accumulated_make_one_update():
    net, optimizer = start(**MEASURING)
    slopes = []
    for seeds in ([0], [1], [0, 1]):
        optimizer.zero_grad()
        for seed in seeds:
            torch.manual_seed(seed)
            (net.train()(**batch(seed))[0] / 2).backward()
        slopes.append(torch.cat([gate.log_alpha.grad for gate in gates(net)]) / SLOPE)
    optimizer.step()
    torch.testing.assert_close(slopes[2], slopes[0] + slopes[1], rtol=1e-4, atol=1e-6)
    found = torch.cat(measured(net, optimizer))
    torch.testing.assert_close(found, slopes[2].double() ** 2, rtol=1e-4, atol=1e-9)


def test_what_the_scaler_leaves_out_is_not_measured():
    """And the scale is that of no importance."""
    ends = []
    for scale, broken in ((1024.0, 5), (512.0, None)):
        net, optimizer = start(**MEASURING)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for i in [*range(5), *([None] if broken else []), *range(5, MEASURED)]:
            torch.manual_seed(100 + (i or 0))
            with torch.autocast("cpu", torch.bfloat16):
                loss, _, _ = net.train()(**batch(i or 0))
            factor = float("inf") if i is None else 1.0
            scaler.scale(factor * loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert net.controller.update == MEASURED
        assert scaler.get_scale() == 512
        ends.append(starts(net))
    assert torch.equal(*ends)
    assert len(ends[0].unique()) > 1


def test_gradients_that_are_no_numbers_are_told():
    """Where a trainer does not skip them."""
    net, optimizer = start(**MEASURING)
    train(net, optimizer, range(MEASURED - 1))
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    with pytest.raises(
        ValueError, match="mean gradients of the gates are not all finite"
    ):
        optimizer.step()


def test_each_part_has_an_order_of_its_own():
    """As each has targets of its own."""
    conf = {**MEASURING["sparsity_scheduler_conf"], "per": "block"}
    net, optimizer = start(**{**MEASURING, "sparsity_scheduler_conf": conf})
    alike = float(starts(net).mean())
    train(net, optimizer, range(MEASURED))
    for part in net.controller.parts.values():
        assert float(part.log_alpha().mean()) == pytest.approx(alike, abs=1e-5)
        assert len(part.log_alpha().unique()) > 1


@pytest.mark.parametrize("constraint", ["lagrangian", "nupi", "inequality"])
def test_penalties_start_from_it_too(constraint):
    changes = {"sparsity_constraint": constraint, "sparsity_constraint_conf": {}}
    net, optimizer = start(**{**MEASURING, **changes})
    first = copy.deepcopy(net.controller.multipliers)
    train(net, optimizer, range(MEASURED))
    assert net.controller.multipliers == first  # the warm-up has no shortfall
    assert len(starts(net).unique()) > 1
    train(net, optimizer, range(MEASURED, MEASURED + 12))
    assert budget(net).actual()["params"] >= 0.3


def test_a_warm_up_that_is_too_short():
    expected = r"warmup_steps is 19, which makes 19 updates, but gate_start is 'taylor'; "
    with pytest.raises(ValueError, match=f"{expected}expected warmup_steps of 20 or"):
        LinearSparsityScheduler(warmup_steps=19, gate_start="taylor")
    conf = {"warmup_steps": 0.5, "ramp_steps": 1, "hold_steps": 1, "in_epochs": True}
    scheduler = LinearSparsityScheduler(gate_start="taylor", **conf)
    with pytest.raises(ValueError, match=r"which makes 15 updates, .* of 0\.667 or more"):
        scheduler.fit_(30)
    scheduler.fit_(40)
    net, _ = start(sparsity_scheduler_conf={"gate_start": "taylor", **conf})
    with pytest.raises(ValueError, match=r"warmup_steps is 0\.5, which makes 5 updates"):
        net.controller.begin_epoch(10, 8)


def test_starts_that_nothing_measures():
    with pytest.raises(ValueError, match=r"gate_start is 'fisher'; expected taylor, or"):
        start(sparsity_scheduler_conf={**LENGTHS, "gate_start": "fisher"})


def test_a_run_is_not_resumed_with_another_start():
    net, optimizer = start(**ALIKE)
    train(net, optimizer, range(1))
    _, other = start(**MEASURING)
    with pytest.raises(ValueError, match="gate_start was None, is taylor"):
        other.load_state_dict(optimizer.state_dict())


def test_a_gate_that_is_measured_is_1_and_draws_nothing():
    gate = HardConcrete(3)
    gate.measuring = True
    z = gate()
    z.backward(torch.tensor([1.0, -2.0, 4.0]))
    assert torch.equal(z, torch.ones(3))
    assert torch.equal(gate.log_alpha.grad / SLOPE, torch.tensor([1.0, -2.0, 4.0]))
    assert gate.noise is None

"""What a controller does beside the plain phases: parts, order, statistics, warnings."""

import copy

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from espnet_l0prune.core.feasibility import _least, check_compatible, check_reachable
from espnet_l0prune.core.parts import split
from espnet_l0prune.core.selection import select
from espnet_l0prune.deploy.cut import largest_step
from espnet_l0prune.plugin.compared_layers import compared_layers
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import budget, model
from espnet_l0prune.testing.updates import batch, train
from tests.plugin.test_training import SCHEDULE, gates, start

WIDER = {"linear_units": 32, "cnn_module_kernel": 5}


def teacher(tmp_path, **changes) -> dict[str, str]:
    save_experiment(tmp_path / "dense", **changes)
    return {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
    }


def test_a_teacher_that_cannot_follow(tmp_path):
    """Its conditioning asks for a CTC that the student's encoder is not given."""
    inner = {"interctc_layer_idx": [1], "interctc_use_conditioning": True}
    more = {"encoder_conf": inner, "model_conf": {"interctc_weight": 0.3}}
    files = teacher(tmp_path, **more)
    with pytest.raises(ValueError, match="has interctc_use_conditioning: True, the stud"):
        start(model_conf=files)


def test_features_that_a_preencoder_changes():
    projection = {"input_size": 20, "output_size": 12}
    net, optimizer = start(preencoder="linear", preencoder_conf=projection)
    history = train(net, optimizer, range(15))
    assert history[-1]["sparsity_actual_params"] >= 0.3


# Parts


@pytest.mark.parametrize(
    ("per", "target"),
    [("block", 0.4), ("block", {"params": 0.3, "macs": 0.4}), ("kind", 0.4)],
)
def test_each_part_meets_the_targets(per, target):
    conf = {**SCHEDULE, "per": per, "target": target}
    net, optimizer = start(encoder_conf=WIDER, sparsity_scheduler_conf=conf)
    history = train(net, optimizer, range(15))
    controller = net.controller
    names = {
        "block": {"frontend", "encoders.0", "encoders.1"},
        "kind": {"frontend", "attention", "feed_forward", "convolution"},
    }[per]
    assert controller.parts.keys() == names
    goal = controller.goal.targets
    for name, part in controller.parts.items():
        actual = part.actual()
        excess = min(actual[cost] - target for cost, target in goal.items())
        assert 0 <= excess <= 0.001 + largest_step(part, goal), name
        for cost in goal:
            assert history[-1][f"sparsity_expected_{cost}_{name}"] == pytest.approx(
                actual[cost]
            )
            assert history[-1][f"lambda1_{cost}_{name}"] != 0


@pytest.mark.parametrize("per", ["block", "kind"])
def test_parts_cost_what_they_cost_in_the_whole(per):
    """Gates of a part move its sparsity as much as the network's, and no other's."""
    net = model(encoder_conf={"units": ["heads", "ffn_channels", "conv_modules"]})
    whole = budget(net)
    parts = split(whole, net.encoder, per)
    assert sum(p.totals["params"] for p in parts.values()) <= whole.totals["params"]
    for name, part in parts.items():
        before = {n: p.actual() for n, p in parts.items()}
        left = whole.remaining("params"), whole.remaining("macs")
        for gate in part.gates.values():
            gate.decide_(torch.zeros_like(gate.log_alpha, dtype=torch.bool))
        after = {n: p.actual() for n, p in parts.items()}
        assert {n for n in parts if before[n] != after[n]} == {name}
        for cost, old in zip(("params", "macs"), left, strict=True):
            gone = (after[name][cost] - before[name][cost]) * part.totals[cost]
            if per == "block":  # a kind's norms are in no part
                assert gone == pytest.approx(old - whole.remaining(cost))


@pytest.mark.parametrize(
    ("units", "per", "kind"),
    [(["width"], "block", "width"), (["heads", "blocks"], "kind", "blocks")],
)
def test_units_beyond_a_part_are_refused(units, per, kind):
    with pytest.raises(ValueError, match=f"each {per} cannot hold {kind}, which reach"):
        start(
            encoder_conf={"units": units, "num_blocks": 2},
            sparsity_scheduler_conf={**SCHEDULE, "per": per},
        )


# Several targets


def test_targets_that_contradict_each_other():
    conf = {**SCHEDULE, "target": {"params": 0.7, "macs": 0.1}}
    message = r"0\.7 in params takes about 0\.\d+ of the macs along at least, .* is 0\.1"
    with pytest.raises(ValueError, match=message):
        start(sparsity_scheduler_conf=conf)
    start(
        sparsity_scheduler_conf=conf,
        sparsity_constraint="inequality",
        sparsity_constraint_conf={},
    )


@pytest.mark.parametrize("units", ["default", "all"])
def test_no_choice_of_units_is_called_a_contradiction(units):
    """Whatever was chosen, its own sparsities as targets are compatible."""
    net = model(encoder_conf={"units": units, **WIDER})
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        for gate in gates(net):
            draw = torch.rand(gate.log_alpha.shape, generator=generator)
            gate.log_alpha.data = draw * 4 - 2
        found = budget(net)
        select(found, {"params": 0.5})
        actual = found.actual()
        goal = {cost: actual[cost] for cost in ("params", "macs")}
        if min(goal.values()) > 0:
            check_compatible(found, goal)


# Order


def test_weights_and_gates_in_turn():
    net, optimizer = start(optim_conf={"order": "alternating"})
    train(net, optimizer, range(2))
    for update in range(2, 14):
        weights, alphas, multipliers = snapshot(net)
        train(net, optimizer, range(update, update + 1))
        turn = update % 2 == 1
        now = snapshot(net)
        assert torch.equal(weights, now[0]) == turn
        if update < 13:  # the last fixes them
            assert torch.equal(alphas, now[1]) != turn
        assert (multipliers == now[2]) != turn


def test_gates_only():
    net, optimizer = start(optim_conf={"order": "gates"})
    train(net, optimizer, range(2))
    weights, alphas, _ = snapshot(net)
    train(net, optimizer, range(2, 13))
    now = snapshot(net)
    assert torch.equal(weights, now[0])
    assert not torch.equal(alphas, now[1])
    train(net, optimizer, range(13, 14))
    weights = snapshot(net)[0]  # with the gates' soft values
    train(net, optimizer, range(14, 15))
    assert not torch.equal(weights, snapshot(net)[0])


def snapshot(net):
    """All weights, all log_alphas, and the multipliers, as they are now."""
    alphas = {id(gate.log_alpha) for gate in gates(net)}
    weights = [p.detach().flatten() for p in net.parameters() if id(p) not in alphas]
    return (
        torch.cat(weights),
        torch.cat([gate.log_alpha.detach().clone() for gate in gates(net)]),
        copy.deepcopy(net.controller.multipliers),
    )


# Batch normalization


def test_batch_norms_forget_the_random_gates():
    """After the gates froze: the mean over the batches since, then with momentum."""
    net, optimizer = start()
    train(net, optimizer, range(14))
    norm = net.encoder.encoders[0].conv_module.norm
    assert isinstance(norm, _BatchNorm)
    assert int(norm.num_batches_tracked) == 0
    assert float(norm.running_mean.abs().min()) > 0  # until a batch comes
    means = []
    norm.register_forward_pre_hook(
        lambda _, args: means.append(args[0].detach().mean((0, 2)))
    )
    expected = torch.zeros_like(norm.running_mean)
    for i in range(14, 29):
        train(net, optimizer, range(i, i + 1))
        share = max(0.1, 1 / len(means))
        expected += share * (means[-1] - expected)
        torch.testing.assert_close(norm.running_mean, expected)
    torch.testing.assert_close(norm.momentum, 0.1)


# Epochs of unknown length


def test_epochs_of_another_length_are_refused():
    conf = {"target": 0.3, "in_epochs": True}
    conf |= {"warmup_steps": 1, "ramp_steps": 2, "hold_steps": 1}
    net, optimizer = start(sparsity_scheduler_conf=conf)
    net.controller.begin_epoch(3, 8)
    train(net, optimizer, range(3))
    net.controller.begin_epoch(3, 8)
    with pytest.raises(ValueError, match="an epoch has 4 updates, but had 3"):
        net.controller.begin_epoch(4, 8)
    net, _ = start(sparsity_scheduler_conf=conf)
    with pytest.raises(ValueError, match=r"max_epoch to 5, or .* to 3 epochs in all"):
        net.controller.begin_epoch(3, 4)


def test_updates_that_were_skipped_are_missing_at_the_end():
    """14 of 5 epochs of 3, of which the first had 1."""
    net, optimizer = start()
    net.controller.begin_epoch(3, 5)
    train(net, optimizer, range(1))
    message = r"freeze after 14 updates .* ends after 13: .* Raise max_epoch to 6"
    with pytest.raises(ValueError, match=message):
        net.controller.begin_epoch(3, 5, 1)


def test_a_warm_up_of_part_of_an_epoch_is_dense(caplog):
    """The phases of a schedule in epochs begin when their length is known."""
    conf = {"target": 0.3, "in_epochs": True}
    conf |= {"warmup_steps": 0.5, "ramp_steps": 0.2, "hold_steps": 0.2}
    net, optimizer = start(sparsity_scheduler_conf=conf)
    assert all(gate.is_new() for gate in gates(net))
    net.controller.begin_epoch(10, 2)
    assert net.controller.phase == "warmup"
    assert not any(gate.sampling for gate in gates(net))
    train(net, optimizer, range(5))
    assert net.controller.phase == "ramp"
    assert all(gate.sampling for gate in gates(net))


def test_multipliers_that_are_no_numbers_are_refused():
    """Where a trainer, other than ESPnet's, makes updates of gradients that are none."""
    net, optimizer = start()
    train(net, optimizer, range(3))
    data = batch()
    data["speech"][0, 0] = float("nan")
    loss, _, _ = net.train()(**data)
    loss.backward()
    with pytest.raises(ValueError, match=r"multipliers of params are .*nan.*; expected"):
        optimizer.step()


def test_phases_of_no_update_are_refused():
    lengths = {"warmup_steps": 0, "ramp_steps": 0.001, "hold_steps": 1}
    for name in ("ramp_steps", "hold_steps"):
        conf = {"target": 0.3, "in_epochs": True, **lengths}
        net, _ = start(sparsity_scheduler_conf=conf)
        message = f"{name} is 0.001 epochs, which is no update where an epoch has 100; "
        with pytest.raises(ValueError, match=message + "expected 0.01 or more, or 0"):
            net.controller.begin_epoch(100, 3)
        lengths["ramp_steps"], lengths["hold_steps"] = 1, 0.001
    conf["hold_steps"] = 0
    start(sparsity_scheduler_conf=conf)[0].controller.begin_epoch(100, 3)


def test_targets_in_what_was_not_counted():
    with pytest.raises(ValueError, match="target has flops, which this budget does not"):
        check_reachable(budget(model()), {"flops": 0.3})


def test_a_scope_that_the_model_has_not():
    with pytest.raises(ValueError, match="but this model has no decoder"):
        budget(model(decoder=None, model_conf={"ctc_weight": 1.0}), "decoder")


def test_gates_of_another_run_are_refused():
    """As init_param brings them: the run would not begin dense."""
    net, _ = start()
    net.controller.begin_epoch(100, 1)
    gates(net)[0].decide_(torch.ones_like(gates(net)[0].log_alpha, dtype=torch.bool))
    with pytest.raises(ValueError, match="the gates come from another run"):
        net.controller.begin_epoch(100, 1)


def test_an_iterator_without_a_length():
    net, _ = start()
    net.controller.begin_epoch(None, 2)
    net, _ = start(sparsity_scheduler_conf={**SCHEDULE, "in_epochs": True})
    with pytest.raises(ValueError, match=r"the iterator .* has epochs of unknown length"):
        net.controller.begin_epoch(None, 2)


def test_an_iterator_without_a_length_ends_too_early():
    """Its first epoch tells about how long the others are: 3 updates of 14."""
    net, optimizer = start()
    net.controller.begin_epoch(None, 4)
    train(net, optimizer, range(3))
    with pytest.raises(ValueError, match=r"freeze after 14 updates .* ends after 12"):
        net.controller.begin_epoch(None, 4, 1)
    net.controller.begin_epoch(None, 5, 1)


# Warnings


def test_multipliers_that_swing_are_named(caplog):
    net, optimizer = start(
        sparsity_scheduler_conf={**SCHEDULE, "ramp_steps": 30, "hold_steps": 30},
        optim_conf={"gate_lr": 0.5},
        sparsity_constraint="nupi",
        sparsity_constraint_conf={"multiplier_lr": 1e4, "kp": 0.0},
    )
    train(net, optimizer, range(40))
    net.controller.begin_epoch(40, 3)
    assert "sparsity in params swings around its target: it crossed it" in caplog.text
    assert "Lower multiplier_lr in sparsity_constraint_conf" in caplog.text
    caplog.clear()
    net.controller.begin_epoch(40, 3)  # nothing new since
    assert "The expected sparsity" not in caplog.text


def test_more_than_an_inequality_asks_for_is_well(caplog):
    conf = {"warmup_steps": 1, "ramp_steps": 1, "hold_steps": 60, "target": 0.05}
    net, optimizer = start(
        sparsity_scheduler_conf=conf,
        optim_conf={"gate_lr": 0.5},
        sparsity_constraint="inequality",
        sparsity_constraint_conf={"multiplier_lr": 1e4},
    )
    history = train(net, optimizer, range(30))
    assert max(x["sparsity_expected_params"] for x in history) > 0.11
    net.controller.begin_epoch(100, 2)
    assert "The expected sparsity" not in caplog.text


@pytest.mark.parametrize("updates", [3, None])
def test_a_run_too_short_for_its_gates_says_so_once(updates, caplog):
    net, optimizer = start()  # 12 updates, at 0.3
    net.controller.begin_epoch(updates, 9)
    assert "train for 12 updates (ramp and hold), but to close one takes some 18" in (
        caplog.text
    )
    caplog.clear()
    train(net, optimizer, range(3))
    net.controller.begin_epoch(updates, 9, 1)
    net, _ = start(optim_conf={"gate_lr": 0.5})
    net.controller.begin_epoch(updates, 9)
    assert not caplog.text


def test_targets_that_no_gates_meet_are_named(caplog):
    """They are too close to a contradiction to be refused before."""
    least = _least(budget(model(encoder_conf=WIDER)), "params", 0.4, "macs")
    projected = {"sparsity_constraint": "projected", "sparsity_constraint_conf": {}}
    for macs in (least - 0.02, least + 0.05):
        caplog.clear()
        conf = {**SCHEDULE, "target": {"params": 0.4, "macs": macs}}
        more = {"encoder_conf": WIDER, "sparsity_scheduler_conf": conf}
        net, optimizer = start(**more, **projected)
        for epoch in range(5):
            net.controller.begin_epoch(3, 6, epoch)
            train(net, optimizer, range(3 * epoch, 3 * epoch + 3))
        assert ("no gates were found" in caplog.text) == (macs < least)


def test_what_freezing_adds_is_no_unmet_target(caplog):
    """One unit takes more than a hundredth, and the gates are fixed at an epoch's end."""
    conf = {**SCHEDULE, "target": {"params": 0.5}}
    projected = {"sparsity_constraint": "projected", "sparsity_constraint_conf": {}}
    coarse = {"encoder_conf": {**WIDER, "round_to": 16}}
    net, optimizer = start(sparsity_scheduler_conf=conf, **coarse, **projected)
    frozen = net.controller.scheduler.frozen_begins
    net.controller.begin_epoch(frozen, 2, 0)
    train(net, optimizer, range(frozen))
    assert net.controller.report()["sparsity_expected_params"] > 0.51
    net.controller.begin_epoch(frozen, 2, 1)
    assert "no gates were found" not in caplog.text


def test_gates_that_lag_are_named(caplog):
    net, optimizer = start(
        optim_conf={"gate_lr": 1e-4},
        sparsity_constraint_conf={"multiplier_lr": 1e-3, "lambda2": 0.0},
    )
    train(net, optimizer, range(5))
    net.controller.begin_epoch(5, 4)
    assert not caplog.text
    train(net, optimizer, range(5, 14))
    assert "0.286 from its target, which no longer rises. Raise" in caplog.text


# Criteria


def test_criteria_prefer_any_epoch_on_budget():
    net, optimizer = start()
    train(net, optimizer, range(3))
    early = criteria(net)
    train(net, optimizer, range(3, 14))
    late = criteria(net)
    assert early["loss_on_budget"] == pytest.approx(early["loss_task"] + 1e4)
    assert early["acc_on_budget"] == 0
    assert late["loss_on_budget"] == late["loss_task"]
    assert late["acc_on_budget"] == late["acc"] > 0


def criteria(net) -> dict[str, float]:
    _, stats, _ = net.eval()(**batch())
    return {k: float(v) for k, v in stats.items() if v is not None}


# The projection of the layers


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize("units", ["default", ["heads", "width"]])
def test_projection_of_a_side(side, units, tmp_path):
    conf = {**teacher(tmp_path), "layer_projection": side}
    net, optimizer = start(model_conf=conf, encoder_conf={"units": units})
    plain, _ = start(
        model_conf={**conf, "layer_projection": "identity"},
        encoder_conf={"units": units},
    )
    stats = [criteria(m)["loss_layer"] for m in (net, plain)]
    assert stats[0] == pytest.approx(stats[1])  # it begins as the identity
    if "width" in units:
        gate = net.encoder.width_gate
        gate.log_alpha.data[:5] = -100.0
    before = net.projection.detach().clone()
    train(net, optimizer, range(2))
    assert not torch.equal(before, net.projection)

    with torch.no_grad():
        weight = torch.randn(16, 16)
        net.projection.copy_(weight)
    hidden = {i: torch.randn(2, 7, 16) for i in range(2)}
    theirs = {i: torch.randn(2, 7, 16) for i in range(2)}
    trace = type("Trace", (), {"blocks": hidden, "encoder_lengths": torch.tensor([7, 7])})
    target = type("Trace", (), {"blocks": theirs})
    keep = slice(5, None) if "width" in units else slice(None)
    for i, (a, b) in enumerate(compared_layers(net, trace, target)):
        if side == "teacher":
            torch.testing.assert_close(a, hidden[i][..., keep])
            torch.testing.assert_close(b, (theirs[i] @ weight.T)[..., keep])
        else:
            torch.testing.assert_close(b, theirs[i])
            torch.testing.assert_close(a, hidden[i][..., keep] @ weight[:, keep].T)


def test_the_projection_is_of_training_only(tmp_path):
    conf = {**teacher(tmp_path), "layer_projection": "teacher"}
    net, optimizer = start(model_conf=conf)
    train(net, optimizer, range(3))
    state = net.state_dict()
    assert "projection" in state
    other = model(model_conf=conf)
    other.load_state_dict(state)  # strict
    assert "projection" in state
    assert "projection" not in other.state_dict()
    again, _ = start(seed=1, model_conf=conf)
    again.load_state_dict(state)
    assert torch.equal(again.projection, net.projection)


# Mixed precision


def test_gates_and_costs_stay_float32_under_autocast(tmp_path):
    net, optimizer = start(model_conf=teacher(tmp_path))
    train(net, optimizer, range(3))  # gates are drawn from here on
    drawn, computed = [], []
    for gate in gates(net):
        gate.register_forward_hook(lambda _, __, out: drawn.append(out.dtype))
    feed_forward = net.encoder.encoders[0].feed_forward.w_2
    feed_forward.register_forward_hook(lambda _, __, out: computed.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = net.train()(**batch())
        assert net.controller.penalty().dtype == torch.float64
        assert {s.dtype for s in budget(net).expected().values()} == {torch.float64}
    loss.backward()
    assert set(drawn) == {torch.float32}
    assert set(computed) == {torch.bfloat16}
    for gate in gates(net):
        assert gate.log_alpha.dtype == gate.log_alpha.grad.dtype == torch.float32
        assert gate.log_alpha.grad.isfinite().all()
    optimizer.step()
    for gate in gates(net):
        assert gate.log_alpha.dtype == torch.float32
    for value in net.controller.multipliers["params"].values():
        assert isinstance(value, float)

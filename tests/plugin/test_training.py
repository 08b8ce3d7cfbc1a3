"""Gates under training: phases, penalty, teacher, resume; all with ESPnet's classes."""

import copy
import re

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.gates import AdaptiveDropout
from espnet_l0prune.core.optim import L0AdamW, is_of_gates
from espnet_l0prune.core.plan import Plan, plan_of
from espnet_l0prune.plugin.compared_layers import compared_layers
from espnet_l0prune.plugin.trace import Trace
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import arguments, budget, model
from espnet_l0prune.testing.updates import batch, train

SCHEDULE = {
    "target": 0.3,
    "warmup_steps": 2,
    "ramp_steps": 6,
    "hold_steps": 6,
    "seconds": 0.8,
    "tokens": 6,
}


def start(seed: int = 0, **changes):
    """Model and optimizer at the start of training, as ESPnet makes them."""
    changes = {
        "sparsity_scheduler": "linear",
        "sparsity_scheduler_conf": SCHEDULE,
        "optim_conf": {"gate_lr": 0.3},
        "sparsity_constraint_conf": {"multiplier_lr": 50.0, "lambda2": 50.0},
        **changes,
    }
    args = arguments(**changes)
    torch.manual_seed(seed)
    net = ASRTask.build_model(args)
    (optimizer,) = ASRTask.build_optimizers(args, net)
    return net, optimizer


def gates(net):
    return list(budget(net).gates.values())


def test_phases_of_a_training():
    net, optimizer = start()
    first = copy.deepcopy([g.log_alpha for g in gates(net)])
    controller = net.controller
    train(net, optimizer, range(2))
    assert controller.phase == "ramp"
    assert all(
        torch.equal(a, g.log_alpha) for a, g in zip(first, gates(net), strict=True)
    )
    assert controller.multipliers == {"params": {"lambda1": 0, "lambda2": 50}}

    history = train(net, optimizer, range(2, 14))
    assert controller.phase == "frozen"
    assert all(g.is_decided() for g in gates(net))
    actual = budget(net).actual()["params"]
    assert 0.3 <= actual <= 0.3 + 0.05  # units of this tiny encoder are coarse
    assert float(budget(net).expected()["params"]) == pytest.approx(actual)
    targets = [h["sparsity_target_params"] for h in history]
    assert targets == sorted(targets)
    assert history[-1]["lambda1_params"] != 0

    frozen = copy.deepcopy([g.log_alpha for g in gates(net)])
    before = net.encoder.encoders[0].feed_forward.w_1.weight.clone()
    history = train(net, optimizer, range(14, 16))
    assert all(
        torch.equal(a, g.log_alpha) for a, g in zip(frozen, gates(net), strict=True)
    )
    assert not torch.equal(before, net.encoder.encoders[0].feed_forward.w_1.weight)
    assert history[-1]["loss_sparsity"] == 0


def test_penalty_and_multipliers_in_closed_form():
    both = {**SCHEDULE, "target": {"params": 0.3, "macs": 0.4}}
    net, optimizer = start(sparsity_scheduler_conf=both)
    train(net, optimizer, range(5))
    controller = net.controller
    targets = controller.scheduler.targets(5, controller.goal.targets)
    expected = budget(net).expected()
    penalty, after = 0.0, {}
    for cost, multipliers in controller.multipliers.items():
        shortfall = targets[cost] - float(expected[cost])
        lambda1, lambda2 = multipliers["lambda1"], multipliers["lambda2"]
        penalty += lambda1 * shortfall + lambda2 * shortfall**2
        after[cost] = {
            "lambda1": pytest.approx(lambda1 + 50 * shortfall),
            "lambda2": pytest.approx(lambda2 + 50 * shortfall**2),
        }
    assert float(controller.penalty()) == pytest.approx(penalty)
    optimizer.zero_grad()
    optimizer.step()  # nothing moves but the multipliers
    assert controller.multipliers == after
    assert controller.update == 6


@pytest.mark.parametrize("stop", [1, 5, 9, 14, 15])
@pytest.mark.parametrize("constraint", ["lagrangian", "projected"])
def test_resume_equals_never_having_stopped(constraint, stop, tmp_path):
    """In every phase, from what ESPnet saves: model and optimizer."""
    changes = {"sparsity_constraint": constraint}
    if constraint == "projected":
        changes["sparsity_constraint_conf"] = {}
    net, optimizer = start(**changes)
    train(net, optimizer, range(16))

    half, half_optimizer = start(**changes)
    train(half, half_optimizer, range(stop))
    states = {"model": half.state_dict(), "optimizers": [half_optimizer.state_dict()]}
    torch.save(states, tmp_path / "checkpoint.pth")
    states = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    other, other_optimizer = start(seed=5, **changes)
    other.load_state_dict(states["model"])
    other_optimizer.load_state_dict(states["optimizers"][0])
    assert other.controller.phase == half.controller.phase
    train(other, other_optimizer, range(stop, 16))
    for (name, a), (_, b) in zip(
        net.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert net.controller.multipliers == other.controller.multipliers


def test_what_is_reported_in_training_and_validation(tmp_path):
    save_experiment(tmp_path / "dense")
    files = {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
    }
    net, _ = start(model_conf={**files, "layer_weight": 2.0})
    for mode in (True, False):
        loss, stats, weight = net.train(mode)(**batch())
        stats = {k: float(v) for k, v in stats.items() if v is not None}
        for name in ("target", "expected", "actual"):
            assert f"sparsity_{name}_params" in stats
        assert {"sparsity_actual_macs", "sparsity_expected_macs"} <= set(stats)
        assert {"lambda1_params", "lambda2_params", "loss_sparsity", "acc"} <= set(stats)
        total = (
            stats["loss_task"]
            + 2.0 * stats["loss_layer"]
            + 0.5 * stats["loss_att_kl"]
            + 0.5 * stats["loss_ctc_kl"]
            + stats["loss_sparsity"]
        )
        assert (
            float(loss) == pytest.approx(total, rel=1e-5) == pytest.approx(stats["loss"])
        )
        assert float(weight) == 3
    assert not any("teacher" in key for key in net.state_dict())


def test_a_student_equal_to_its_teacher_has_no_distillation_loss(tmp_path):
    dense = save_experiment(tmp_path / "dense")
    files = {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
    }
    net, _ = start(seed=3, model_conf=files)
    net.load_state_dict(dense.state_dict(), strict=False)
    _, stats, _ = net.eval()(**batch())
    for name in ("loss_layer", "loss_att_kl", "loss_ctc_kl"):
        assert float(stats[name]) == 0, name
    # and the teacher is the dense model: the student's loss is its loss
    expected, _, _ = dense.eval()(**batch())
    assert float(stats["loss_task"]) == float(expected)


@pytest.mark.parametrize("layer_map", ["uniform", "last", "dynamic"])
def test_a_shallower_student_learns_from_the_layers_it_has(layer_map, tmp_path):
    dense = save_experiment(tmp_path / "dense", encoder_conf={"num_blocks": 3})
    conf = {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
        "layer_loss": "l1_cosine",
        "ctc_kl_frames": "non_blank",
    }
    units = {"units": ["heads", "blocks"], "num_blocks": 2}
    with pytest.raises(ValueError, match="encoder blocks: 3, the student 2"):
        start(model_conf=conf, encoder_conf=units)
    net, optimizer = start(
        model_conf={**conf, "layer_map": layer_map}, encoder_conf=units
    )
    net.load_state_dict(dense.state_dict(), strict=False)
    history = train(net, optimizer, range(3))
    assert all(h["loss_layer"] > 0 and h["loss_ctc_kl"] >= 0 for h in history)
    first, second = ({i: torch.ones(1, 2, 16) * i for i in range(n)} for n in (2, 3))
    net.encoder.encoders[0].blocks_gate.log_alpha.data.fill_(-100.0)
    trace = Trace(blocks=first, encoder_lengths=torch.tensor([2]))
    pairs = compared_layers(net, trace, Trace(blocks=second))
    assert all(float(ours.mean()) == 1 for ours, _ in pairs)  # the closed block is out
    last = [float(theirs.mean()) for _, theirs in pairs]
    assert last == ([0, 1, 2] if layer_map == "dynamic" else [2])


def test_blocks_that_learn_by_themselves(tmp_path):
    """A block reads what that of the teacher reads: what the blocks before it make is of
    no matter, in value and in gradient."""
    dense = save_experiment(tmp_path / "dense")
    conf = {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
        "layer_input": "teacher",
    }
    weights = dict.fromkeys(("task_weight", "att_kl_weight", "ctc_kl_weight"), 0.0)
    net, optimizer = start(model_conf={**conf, **weights, "layer_weight": 1.0})
    net.load_state_dict(dense.state_dict(), strict=False)
    first, second = net.eval().encoder.encoders
    with torch.no_grad():
        first.feed_forward.w_1.weight.normal_()
    loss, stats, _ = net(**batch())
    assert float(stats["loss_layer"]) > 0
    assert float(loss) == pytest.approx(float(stats["loss_layer"]))  # all else is at 0
    loss.backward()
    assert first.feed_forward.w_1.weight.grad.abs().sum() > 0
    assert not any(p.grad is not None and p.grad.any() for p in second.parameters())
    loss_of_first = float(loss)
    buffers = []
    for layer_input in ("student", "teacher"):  # statistics are those of one forward
        other, _ = start(model_conf={**conf, "layer_input": layer_input})
        other.train()(**batch())
        buffers.append({k: v for k, v in other.named_buffers() if "running" in k})
    assert buffers[0].keys() == buffers[1].keys() != set()
    for name, value in buffers[0].items():
        assert torch.equal(value, buffers[1][name]), name
    with torch.no_grad():
        second.feed_forward.w_1.weight.normal_()
    optimizer.zero_grad()
    loss, _, _ = net(**batch())
    assert float(loss) > loss_of_first
    loss.backward()
    assert second.feed_forward.w_1.weight.grad.abs().sum() > 0
    assert not any(p.grad.any() for p in net.ctc.parameters() if p.grad is not None)
    with pytest.raises(ValueError, match="layer_map is 'last', layer_input is 'teacher'"):
        start(model_conf={"layer_input": "teacher", "layer_map": "last"})


@pytest.mark.parametrize("units", [["heads", "width"], ["heads", "blocks"]])
def test_what_was_cut_learns_by_itself_too(units, tmp_path):
    """In width, or in depth: a cut student's layer loss is that of the masked one."""
    save_experiment(tmp_path / "dense")
    conf = {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
        "layer_input": "teacher",
    }
    net, _ = start(model_conf=conf, encoder_conf={"units": units})
    planned = plan_of(net.encoder.sites()).plain()
    for site in net.encoder.gated_sites():
        for kind in site.gates:
            kept = {"heads": [0, 2], "width": [*range(3, 16)], "blocks": [0]}[kind]
            planned[site.name][kind] = kept if site.name != "encoders.1" else []
    plan = Plan(planned)
    decide_(net.encoder.sites(), plan)
    losses = [float(net.eval()(**batch())[1]["loss_layer"])]
    cut_(net.encoder, net.encoder.sites(), plan)
    losses.append(float(net(**batch())[1]["loss_layer"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0] > 0


def test_adaptive_dropout_through_all_phases():
    net, optimizer = start(
        encoder_conf={"gate": "adaptive_dropout"},
        sparsity_constraint="controlled_l2",
        sparsity_constraint_conf={"multiplier_lr": 5.0},
    )
    mine = gates(net)
    assert all(type(gate) is AdaptiveDropout for gate in mine)
    expected = float(budget(net).expected()["params"])
    assert expected == pytest.approx(float(budget(net).totals["params"]) * 0, abs=0.02)
    history = train(net, optimizer, range(14))
    assert history[-1]["centre_params"] < 4.6
    both = {**SCHEDULE, "target": {"params": 0.3, "macs": 0.3}}
    with pytest.raises(ValueError, match="holds all gates to one target; expected one"):
        start(
            sparsity_constraint="controlled_l2",
            sparsity_constraint_conf={},
            sparsity_scheduler_conf=both,
        )
    assert net.controller.phase == "frozen"
    assert budget(net).actual()["params"] >= 0.3


def test_a_narrower_student_learns_what_the_teacher_predicts(tmp_path):
    """Layers of another width are not compared."""
    wide = {"output_size": 32, "num_blocks": 3}
    save_experiment(tmp_path / "dense", encoder_conf=wide)
    conf = {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
        "layer_weight": 0.0,
    }
    history = train(*start(model_conf=conf), range(3))
    assert all(h["loss_ctc_kl"] > 0 and h["loss_att_kl"] > 0 for h in history)
    assert not any("loss_layer" in h for h in history)


def test_building_the_teacher_leaves_the_random_state(tmp_path):
    save_experiment(tmp_path / "dense")
    files = {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
    }
    numbers = []
    for conf in ({}, files):
        start(model_conf=conf)
        numbers.append(torch.rand(1))
    assert torch.equal(*numbers)


def test_warm_up_trains_exactly_as_without_gates():
    """Same random state, same weights after the updates of the warm-up.

    Without clipping: its norm sums the gates' zero gradients too, and on several threads
    that may round differently in the last digit.
    """
    dense = model(encoder="conformer", model="espnet")
    optimizer = torch.optim.AdamW(dense.parameters(), lr=1e-3, weight_decay=0.0)
    long = {"target": 0.3, "warmup_steps": 9, "ramp_steps": 1}
    gated, gated_optimizer = start(
        optim_conf={"lr": 1e-3, "weight_decay": 0.0}, sparsity_scheduler_conf=long
    )
    gated.load_state_dict(dense.state_dict(), strict=False)
    train(dense, optimizer, range(4), clip=float("inf"))
    train(gated, gated_optimizer, range(4), clip=float("inf"))
    for name, weight in dense.state_dict().items():
        assert torch.equal(weight, gated.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_list": ["<blank>", "<unk>", "A", "<sos/eos>"]}, "token_list of length"),
        (
            {"token_list": ["<blank>", "<unk>", *"ABCDEFGX", "<space>", "<sos/eos>"]},
            "'X', ",
        ),
        (
            {"encoder_conf": {"output_size": 8}},
            "encoder output of size 8, the student 16",
        ),
        ({"encoder_conf": {"num_blocks": 1}}, "encoder blocks: 1, the student 2"),
        ({"input_size": 24}, "features of size 24, the student 20"),
        ({"encoder_conf": {"input_layer": "conv2d6"}}, "Conv2dSubsampling6"),
        ({"model_conf": {"ctc_weight": 0.0}}, r"CTC heads: \[\]"),
    ],
)
def test_a_teacher_that_does_not_fit(changes, message, tmp_path):
    save_experiment(tmp_path / "dense", **changes)
    files = {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
    }
    with pytest.raises(ValueError, match=message):
        start(model_conf=files)


def test_a_teacher_that_cannot_be_read(tmp_path):
    save_experiment(tmp_path / "dense")
    config, weights = tmp_path / "dense/config.yaml", tmp_path / "dense/model.pth"

    def files(config, weights):
        conf = {"teacher_config": str(config), "teacher_model_file": str(weights)}
        return {"model_conf": conf}

    with pytest.raises(ValueError, match="cannot be read"):
        start(**files(tmp_path / "none.yaml", weights))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot be loaded.*truncated"):
        start(**files(config, weights))
    with pytest.raises(ValueError, match="expected both or neither"):
        start(model_conf={"teacher_config": str(config)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity_scheduler": None}, "pruning expects sparsity_scheduler"),
        ({"optim": "adamw", "optim_conf": {"lr": 1e-3}}, "optim is adamw; .* l0_adamw"),
        ({"model": "espnet"}, "model is espnet; .* l0_distill"),
        ({"encoder": "conformer"}, "encoder is conformer; .* l0_conformer"),
        ({"encoder_conf": {"units": []}}, "encoder is l0_conformer; .* some `units`"),
        ({"use_deepspeed": True}, "use_deepspeed is True; .* false"),
        (
            {
                "encoder_conf": {"uniform": True},
                "sparsity_scheduler_conf": {**SCHEDULE, "per": "block"},
            },
            "uniform: true keeps as many .* expected one of them",
        ),
        ({"train_dtype": "float16"}, "train_dtype is float16; .* float32"),
        ({"sparsity_scheduler_conf": {"target": 1.5}}, "target is 1.5; expected"),
        ({"sparsity_scheduler_conf": {"target": 0.99}}, "reach at most"),
        ({"sparsity_goal_conf": {"targt": 0.5}}, "did you mean 'target'"),
        (
            {"encoder_conf": {"units": ["head"]}},
            "units has .head.; expected default, paper, all, or a list of .*heads",
        ),
        ({"encoder_conf": {"linear_unit": 3}}, "did you mean 'linear_units'"),
        ({"model_conf": {"ctc_weigth": 0.3}}, "did you mean 'ctc_weight'"),
        (
            {"model_conf": {"layer_map": "first"}},
            "layer_map is 'first'; expected one of same, uniform, last, dynamic",
        ),
        ({"model_conf": {"layer_loss": "l1"}}, "layer_loss is 'l1'; .* mse, l1_cosine"),
        ({"model_conf": {"temperature": 0}}, "temperature is 0; expected a number in"),
        ({"model_conf": {"layer_weight": -1}}, "layer_weight is -1; expected a number"),
        ({"optim_conf": {"order": "both"}}, "order is 'both'; expected one of joint"),
        ({"optim_conf": {"gate_lrr": 0.1}}, "optim_conf: .* did you mean 'gate_lr'"),
        ({"optim_conf": {"gate_lr": -0.1}}, "gate_lr is -0.1; expected a number in"),
        (
            {"optim_conf": {"gate_lr": "2e-2"}},  # as YAML reads 2e-2
            "gate_lr is '2e-2'; expected a number in .* YAML reads 2e-2 as",
        ),
        (
            {"sparsity_scheduler_conf": {"target": "half"}},
            r"target is 'half'; expected a number in \(0, 1\)",
        ),
        (
            {"sparsity_scheduler_conf": {**SCHEDULE, "tokens": "many"}},
            "tokens is 'many'; expected a whole number in",
        ),
        (
            {"sparsity_constraint_conf": {"multiplier_lr": "5e-1"}},
            "multiplier_lr is '5e-1'; expected a number in .* YAML",
        ),
        ({"encoder_conf": {"gate": "soft"}}, "gate is 'soft'; expected hard_concrete or"),
        ({"encoder_conf": {"units": "most"}}, "units is 'most'; expected default, paper"),
        (
            {"encoder_conf": {"units": []}, "decoder": "l0_transformer"},
            "scope is encoder, but the encoder has no gates; expected an l0 encoder",
        ),
        (
            {"sparsity_scheduler_conf": {"target": 0.001}},
            "expected sparsity at the start is .* already; expected a higher target",
        ),
        (
            {"sparsity_scheduler_conf": {"per": "layer"}},
            "per is 'layer'; expected block, kind, or null",
        ),
        (
            {"encoder_conf": {"use_cnn_module": False, "units": ["conv_channels"]}},
            "nothing in this network has such units",
        ),
        (
            {"encoder_conf": {"round_to": 64}},
            "round_to is 64, but embed.conv.0 has 16 frontend_channels; .* at most 16",
        ),
        ({"encoder_conf": {"round_to": 0}}, "round_to is 0; expected a whole number"),
        (
            {"sparsity_scheduler_conf": {"scope": "all"}},
            "scope is 'all'; expected one of frontend, encoder, decoder, model",
        ),
        (
            {"sparsity_scheduler_conf": {"scope": "decoder"}},
            "scope is decoder, but encoder_conf has units; expected scope: model",
        ),
        (
            {"decoder": "l0_transformer"},
            "scope is encoder, but decoder_conf has units; expected scope: model",
        ),
        (
            {
                "encoder_conf": {"units": []},
                "decoder": "l0_transformer",
                "decoder_conf": {"units": []},
            },
            "expects encoder: one of l0_conformer",
        ),
        (
            {"sparsity_scheduler_conf": {"target": {"params": 0.3, "flops": 0.3}}},
            "expected a number, or a mapping with some of params, macs",
        ),
        ({"sparsity_scheduler_conf": {"seconds": 0}}, "seconds is 0; expected a number"),
        ({"sparsity_scheduler_conf": {"seconds": 0.03}}, "seconds is 0.03: .* short"),
        ({"patience": 3}, "patience is 3; pruning expects patience: null"),
        ({"encoder_conf": {"input_layer": "conv3d"}}, "unknown input_layer: conv3d"),
        (
            {"encoder_conf": {"input_layer": "linear", "units": ["frontend_channels"]}},
            "nothing in this network has such units; it has att_modules",
        ),
        (
            {"encoder_conf": {"concat_after": True, "units": ["width"]}},
            "'width', which cannot be pruned at stream: with concat_after: true",
        ),
        (
            {
                "encoder_conf": {
                    "selfattention_layer_type": "selfattn",
                    "pos_enc_layer_type": "abs_pos",
                    "qk_norm": True,
                    "units": ["head_dims"],
                }
            },
            "qk_norm normalizes over all dimensions of a head. Choose among .*heads",
        ),
        (
            {"encoder_conf": {"structure": "/nonexistent"}},
            "structure /nonexistent cannot be",
        ),
        (
            {"encoder_conf": {"structure": {"encoders.9.self_attn": {"heads": 1}}}},
            "encoder_conf: structure does not fit: it names 'encoders.9.self_attn'",
        ),
        (
            {"encoder_conf": {"structure": {"encoders.0.self_attn": {"heads": 9}}}},
            "it keeps 9 heads of 'encoders.0.self_attn' up to number 8, where the uncut",
        ),
        *(
            (
                {"encoder_conf": {"structure": {"encoders.0.self_attn": {"heads": n}}}},
                f"a plan keeps {re.escape(str(n))} of the heads of encoders.0.self_at",
            )
            for n in (-1, True, [0, 0], [1, 0], [False, 1], [0.5], [[0]], None)
        ),
        (
            {"encoder_conf": {"structure": {"encoders.0.self_attn": 3}}},
            "structure of 'encoders.0.self_attn' is 3; expected a number for each kind",
        ),
        (
            {"encoder_conf": {"structure": {"encoders.0.self_attn": {"heads": 3}}}},
            r"structure lacks frontend_channels of 'embed.conv.0'; expected all that",
        ),
        (
            {"encoder_conf": {"structure": [1]}},
            r"structure is \[1\]; expected a mapping",
        ),
        (
            {"encoder_conf": {"structure": {"embed.conv.0": {"frontend_channels": 0}}}},
            "it keeps 0 frontend_channels of 'embed.conv.0', where the uncut module has",
        ),
    ],
)
def test_options_that_cannot_prune(changes, message):
    with pytest.raises(ValueError, match=message):
        start(**changes)


def test_dataparallel_is_refused():
    with pytest.raises(ValueError, match=r"ngpu is 2; .*multiprocessing_distributed"):
        start(ngpu=2)


def test_exclude_weight_decay_keeps_gates_apart():
    net, optimizer = start(exclude_weight_decay=True)
    assert isinstance(optimizer, L0AdamW)
    tagged = [
        p
        for group in optimizer.param_groups
        if is_of_gates(group)
        for p in group["params"]
    ]
    assert {id(p) for p in tagged} == {id(g.log_alpha) for g in gates(net)}
    train(net, optimizer, range(15))
    assert net.controller.phase == "frozen"


def test_espnets_init_leaves_the_gates_open():
    (option,) = (a for a in ASRTask.get_parser()._actions if a.dest == "init")
    known = {init for init in option.choices if init is not None}
    assert "xavier_uniform" in known
    for init in known:
        conf = {"selfattention_layer_type": "selfattn", "pos_enc_layer_type": "abs_pos"}
        net = model(init=init, encoder_conf=conf)
        assert budget(net).actual()["params"] == 0, init

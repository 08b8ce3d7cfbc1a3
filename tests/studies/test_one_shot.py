"""Units that are chosen at once, from a dense experiment to a cut one; and by PARP."""

import copy

import pytest
import torch
import yaml
from one_shot import gated, prune_at_once
from parp import prune_softly, zero_

from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.importance import IMPORTANCES, magnitude
from espnet_l0prune.core.selection import select
from espnet_l0prune.deploy.cut import cut_experiment
from espnet_l0prune.deploy.verify import outputs
from espnet_l0prune.plugin.counting import evaluation, sites_of
from espnet_l0prune.testing.models import budget, disturb_, model
from espnet_l0prune.testing.runs import make_data, run
from espnet_l0prune.testing.updates import batch

UNITS = ["heads", "ffn_channels", "conv_channels", "frontend_channels"]
TARGETS = {"params": 0.5, "macs": 0.5}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    make_data(folder)
    changes = {"encoder": "conformer", "model": "espnet", "optim": "adamw"}
    changes |= {"sparsity_scheduler": None, "sparsity_scheduler_conf": {}}
    changes |= {"sparsity_constraint": None, "sparsity_constraint_conf": {}}
    run(folder, folder / "exp", max_epoch=1, optim_conf={"lr": 1e-3}, **changes)
    return folder / "exp"


def conf_of(dense, units=UNITS, targets=TARGETS) -> dict:
    config = yaml.safe_load((dense / "config.yaml").read_text())
    return {
        "encoder": "l0_conformer",
        "encoder_conf": {**config["encoder_conf"], "units": units},
        "sparsity_scheduler": "linear",
        "sparsity_goal_conf": {"target": targets, "seconds": 0.8},
    }


@pytest.mark.parametrize("name", IMPORTANCES)
def test_from_a_dense_experiment_to_a_cut_one(name, dense, tmp_path):
    conf = conf_of(dense)
    if name == "depth":
        conf = conf_of(dense, ["blocks"], {"params": 0.3})
    if name == "mope":
        conf = conf_of(dense, [*UNITS, "blocks"])
    found = prune_at_once(dense, "latest.pth", conf, name, tmp_path / "pruned", batches=2)
    report = cut_experiment(tmp_path / "pruned", tmp_path / "cut")
    assert report.sparsity == pytest.approx(found)
    targets = conf["sparsity_goal_conf"]["target"]
    assert all(found[cost] >= goal for cost, goal in targets.items())
    prune_at_once(dense, "latest.pth", conf, name, tmp_path / "again", batches=2)
    with pytest.raises(ValueError, match="again exists; expected a new folder"):
        prune_at_once(dense, "latest.pth", conf, name, tmp_path / "again", batches=2)
    states = [torch.load(tmp_path / n / "latest.pth") for n in ("pruned", "again")]
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())


def test_pruning_configurations_that_cannot_be_used(dense):
    conf, wider = conf_of(dense), conf_of(dense)
    wider["encoder_conf"]["linear_units"] += 8
    other = {"target": TARGETS, "per": "block"}
    for changes, message in (
        ({"sparsity_scheduler": None}, "has no sparsity_scheduler"),
        ({"sparsity_goal_conf": other}, "per is block; expected null"),
        (conf_of(dense, []), "but the encoder has no gates"),
        (wider, "latest.pth does not fit its configuration"),
    ):
        with pytest.raises(ValueError, match=message):
            gated(dense, "latest.pth", {**conf, **changes})


def test_parp_closes_what_the_gates_would_and_lets_it_grow():
    gated_net = model(encoder_conf={"units": UNITS}).eval()
    disturb_(gated_net)
    soft = copy.deepcopy(gated_net)
    plan = select(budget(soft), TARGETS, scores=magnitude(budget(soft)))
    decide_(sites_of(gated_net), plan)
    zero_(sites_of(soft), plan)
    for dtype, found in outputs(gated_net).items():
        for name, expected in found.items():
            torch.testing.assert_close(outputs(soft)[dtype][name], expected)
    layer = soft.encoder.encoders[0].feed_forward
    soft.train()(**batch())[0].backward()
    gone = layer.w_2.weight.eq(0).all(0)
    assert gone.any()
    assert layer.w_2.weight.grad[:, gone].abs().sum() > 0


def test_parp_writes_a_dense_checkpoint(dense, tmp_path):
    prune_softly(dense, "latest.pth", conf_of(dense), tmp_path / "round/begin.pth")
    state = torch.load(tmp_path / "round/begin.pth", weights_only=True)
    trained = torch.load(dense / "latest.pth", weights_only=True)
    assert state.keys() == trained.keys()
    changed = [k for k in state if not torch.equal(state[k], trained[k])]
    assert any("w_2.weight" in name for name in changed)
    assert not any("w_1" in name for name in changed)
    net, _ = gated(dense, "latest.pth", conf_of(dense))
    with evaluation(net):
        assert all(not v for v in budget(net).actual().values())

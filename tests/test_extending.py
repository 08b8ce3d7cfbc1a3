"""Everything that docs/extending.md says can be added, added from outside the package."""

import json
import math
import zipfile

import pytest
import torch
import torch.nn.functional as F
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main
from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.parser import COMMANDS
from espnet_l0prune.core import importance
from espnet_l0prune.core.constraints import AbsPenalty
from espnet_l0prune.core.costs import COSTS, Cost
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.distillation import LAYER_LOSSES
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.phases import AbsSparsityScheduler
from espnet_l0prune.core.selection import select
from espnet_l0prune.deploy.exports import FORMS, Entry
from espnet_l0prune.deploy.exports.form import ExportForm, Packed, same_as
from espnet_l0prune.networks.block import Block, Place
from espnet_l0prune.networks.blocks import BLOCKS
from espnet_l0prune.networks.blocks.conformer import ConformerBlock
from espnet_l0prune.networks.branches import FEED_FORWARD
from espnet_l0prune.networks.branches.feed_forward import FeedForwardSite
from espnet_l0prune.networks.espnet_modules import (
    ConformerLayer,
    PositionwiseFeedForward,
)
from espnet_l0prune.plugin.options import (
    sparsity_constraint_choices,
    sparsity_scheduler_choices,
)
from espnet_l0prune.plugin.prepare import prepare
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import arguments, budget, model
from espnet_l0prune.testing.runs import CONFIG, final, make_data, run
from espnet_l0prune.testing.updates import batch, train


class Sudden(AbsSparsityScheduler):
    """Nothing for half of the ramp, then all of it."""

    def ramp(self, done: float) -> float:
        return float(done >= 0.5)


class Hinge(AbsPenalty):
    """A fixed price for each shortfall."""

    def start(self) -> dict[str, float]:
        return {"price": 200.0}

    def penalty(self, shortfall, multipliers, log_alpha):
        return multipliers["price"] * shortfall.clamp(min=0)


def largest_difference(student, teacher, lengths):
    """Of the last layers' means over time."""
    return (student[-1].mean(1) - teacher[-1].mean(1)).abs().max()


class DoubleForm(ExportForm):
    """The weights twice: once more in float64, beside the model."""

    def pack(self, model, args, folder, int8):
        torch.save(
            {k: v.double() for k, v in model.state_dict().items()}, folder / "d.pth"
        )
        files = {"d.pth": "the weights in float64"}
        return Packed(model.state_dict(), args, same_as(model, 0.0), "", files)


def test_a_cost_a_schedule_a_constraint_a_loss_a_form_and_a_command(
    tmp_path, monkeypatch, capsys
):
    """In one training, its cut and its export."""
    monkeypatch.setitem(COSTS, "bytes", Cost("bytes", lambda piece: 4 * piece.values))
    monkeypatch.setitem(sparsity_scheduler_choices.classes, "sudden", Sudden)
    monkeypatch.setitem(sparsity_constraint_choices.classes, "hinge", Hinge)
    monkeypatch.setitem(LAYER_LOSSES, "largest", largest_difference)
    monkeypatch.setitem(FORMS, "double", Entry("twice", f"{__name__}:DoubleForm"))
    make_data(tmp_path)
    save_experiment(tmp_path / "dense", encoder_conf={"num_blocks": 2})
    teacher = {
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
    }
    run(
        tmp_path,
        tmp_path / "pruned",
        sparsity_scheduler="sudden",
        sparsity_scheduler_conf={
            **CONFIG["sparsity_scheduler_conf"],
            "target": {"bytes": 0.3},
        },
        sparsity_constraint="hinge",
        sparsity_constraint_conf={},
        model_conf={"ctc_weight": 0.3, "layer_loss": "largest", **teacher},
    )
    figures = final(tmp_path / "pruned")["reporter"]["stats"][6]["train"]
    assert figures["sparsity_target_bytes"] == pytest.approx(0.3)
    assert figures["price_bytes"] == 200
    assert figures["loss_layer"] > 0
    assert main(["cut", str(tmp_path / "pruned"), "--out", str(tmp_path / "cut")]) == 0
    report = json.loads((tmp_path / "cut/cut.json").read_text())
    assert report["sparsity"]["bytes"] == report["sparsity"]["params"] >= 0.3
    zipped = tmp_path / "m.zip"
    assert main(["export", "double", str(tmp_path / "cut"), "--out", str(zipped)]) == 0
    with zipfile.ZipFile(zipped) as archive:
        assert "d.pth" in archive.namelist()
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "cut"), "--json"]) == 0
    amounts = json.loads(capsys.readouterr().out)["amounts"]
    assert amounts["bytes"]["encoder"] == 4 * amounts["params"]["encoder"]

    greet = Command("greet", "greet", lambda args: Answer("hello", ["hello"]))
    monkeypatch.setitem(COMMANDS, "greet", greet)
    assert main(["greet"]) == 0
    assert capsys.readouterr().out == "hello\n"
    with pytest.raises(SystemExit):
        main(["adopt", "--help"])
    assert "--bytes" in capsys.readouterr().out


def test_an_importance(monkeypatch):
    net = model(encoder_conf={"units": ["ffn_channels"]})
    counted = budget(net)

    def last_ones(budget, *_):
        return [-torch.arange(len(g.log_alpha)).float() for g in budget.gates.values()]

    monkeypatch.setitem(importance.IMPORTANCES, "last_ones", last_ones)
    scores = importance.IMPORTANCES["last_ones"](counted, net, [batch()], {"params": 0.1})
    plan = select(counted, {"params": 0.1}, scores=scores)
    kept = [units["ffn_channels"] for name, units in plan.items() if "ffn_" in str(units)]
    assert all(units == list(range(len(units))) for units in kept)


class TallLayer(ConformerLayer):
    """A block of a new kind."""


class TallBlock(Block):
    """Of which the last branch alone is known."""

    module_type = TallLayer
    layout = {"feed_forward": Place("norm_ff", "FFN", FEED_FORWARD)}


class ReluFeedForward(PositionwiseFeedForward):
    """A branch of a new kind, which does not have ESPnet's activation."""

    def forward(self, x):
        return self.w_2(F.relu(self.w_1(x)))


class ReluSite(FeedForwardSite):
    """The same channels; where it stands, ESPnet's kind is not known."""

    module_types = (ReluFeedForward,)


def require_masked_equals_cut(net) -> None:
    """With half of the gates closed."""
    sites = net.encoder.sites()
    torch.manual_seed(0)
    for site in sites:
        for gate in site.gates.values():
            gate.log_alpha.data = 9 * torch.randn(len(gate.log_alpha)).sign()
    plan = select(budget(net), {"params": 0.1})
    decide_(sites, plan)
    assert any(not gate.is_open().all() for s in sites for gate in s.gates.values())
    feats, lengths = torch.randn(2, 60, 20), torch.tensor([60, 41])
    with torch.no_grad():
        masked, *_ = net.encoder(feats, lengths)
        promised = budget(net).remaining()
        cut_(net.encoder, sites, plan)
        small, *_ = net.encoder(feats, lengths)
    torch.testing.assert_close(masked[0], small[0], atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in net.encoder.parameters()) == promised


def test_a_kind_of_block(monkeypatch):
    monkeypatch.setitem(BLOCKS, TallLayer, TallBlock)
    net = model(encoder_conf={"units": []}).eval()
    net.encoder.encoders[0].__class__ = TallLayer
    names = [site.name for site in net.encoder.sites()]
    assert "encoders.0.feed_forward" in names
    assert "encoders.0.self_attn" not in names
    assert "encoders.1.self_attn" in names
    for site in net.encoder.sites():
        site.attach_(["blocks"])
    require_masked_equals_cut(net)


def test_a_kind_of_branch(monkeypatch):
    place = Place("norm_ff", "FFN", (ReluSite,))
    monkeypatch.setitem(ConformerBlock.layout, "feed_forward", place)
    net = model(encoder_conf={"units": []}).eval()
    sites = {site.name for site in net.encoder.sites()}
    assert "encoders.0.feed_forward_macaron" in sites
    assert "encoders.0.feed_forward" not in sites
    for layer in net.encoder.encoders:
        layer.feed_forward.__class__ = ReluFeedForward
    assert "encoders.0.feed_forward" in {site.name for site in net.encoder.sites()}
    for site in net.encoder.sites():
        site.attach_(["ffn_channels"])
    require_masked_equals_cut(net)


def closure_trainer(args, updates: int):
    """A trainer that is not ESPnet's: it hands its forward and backward to the optimizer,
    as Lightning does."""
    torch.manual_seed(0)
    net = ASRTask.build_model(args)
    optimizer = L0AdamW(net.parameters(), **args.optim_conf)
    prepare(args, net, optimizer)
    net.controller.begin_epoch(updates, 1)
    for i in range(updates):

        def closure(i=i):
            torch.manual_seed(1000 + i)
            optimizer.zero_grad()
            loss, *_ = net.train()(**batch(i))
            loss.backward()
            return loss

        optimizer.step(closure)
    return net


@pytest.mark.parametrize("order", ["joint", "alternating"])
def test_a_trainer(order):
    """It makes the updates that ESPnet's makes, to the last bit."""
    lengths = {"warmup_steps": 2, "ramp_steps": 5, "hold_steps": 3}
    changes = {
        "sparsity_goal_conf": {"target": {"params": 0.3, "macs": 0.3}},
        "sparsity_scheduler": "linear",
        "sparsity_scheduler_conf": lengths,
        "sparsity_constraint": "lagrangian",
        "optim_conf": {"gate_lr": 0.3, "order": order},
    }
    net = closure_trainer(arguments(**changes), 12)
    assert net.controller.on_budget
    torch.manual_seed(0)
    args = arguments(**changes)
    other = ASRTask.build_model(args)
    (optimizer,) = ASRTask.build_optimizers(args, other)
    train(other, optimizer, range(12), clip=math.inf)
    assert net.controller.report() == other.controller.report()
    theirs = other.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in net.state_dict().items())

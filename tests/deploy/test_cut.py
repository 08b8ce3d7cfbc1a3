"""Cutting an experiment's folder: what is written, and what is refused."""

import json
import os
from dataclasses import replace

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main
from espnet_l0prune.core.claims import Claim
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.selection import select
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.cut import largest_step
from espnet_l0prune.networks.blocks.conformer import ConformerBlock
from espnet_l0prune.networks.branches.attention import AttentionSite
from espnet_l0prune.networks.branches.feed_forward import FeedForwardSite
from espnet_l0prune.plugin.experiment import load_model
from espnet_l0prune.testing.models import arguments, budget, disturb_, model

SCHEDULE = {"target": 0.3, "warmup_steps": 1, "ramp_steps": 1, "hold_steps": 1}
FINE = {"linear_units": 300}  # so that units are small against the encoder


def save(folder, sparsity: float | None = 0.3, **changes):
    """Write an experiment as training leaves it, its gates at a sparsity."""
    folder.mkdir()
    changes = {
        "encoder_conf": FINE,
        "sparsity_scheduler": "linear",
        "sparsity_scheduler_conf": SCHEDULE,
        **changes,
    }
    args = arguments(**changes)
    torch.manual_seed(0)
    model = ASRTask.build_model(args)
    disturb_(model.encoder)
    if sparsity is not None:
        for site in model.encoder.sites():
            for gate in site.gates.values():
                gate.log_alpha.data.normal_(1.0, 2.0)
        decide_(model.encoder.sites(), select(budget(model), {"params": sparsity}))
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), folder / "latest.pth")
    return model


def test_cut_inspect_verify(tmp_path, capsys):
    gated = save(tmp_path / "exp")
    assert main(["cut", str(tmp_path / "exp"), "--out", str(tmp_path / "cut")]) == 0
    report = json.loads((tmp_path / "cut/cut.json").read_text())
    assert abs(report["sparsity"]["params"] - 0.3) <= 0.005
    assert report["difference"]["float64"] <= 1e-10
    assert report["difference"]["float32"] <= 1e-4
    assert main(["verify", str(tmp_path / "exp"), str(tmp_path / "cut")]) == 0

    small, _ = load_model(tmp_path / "cut/config.yaml", tmp_path / "cut/model.pth")
    total = count_parameters(gated.encoder)
    numel = sum(p.numel() for p in small.encoder.parameters())
    assert 1 - numel / total == pytest.approx(report["sparsity"]["params"])
    # decoder, CTC and the rest are as they were
    state = small.state_dict()
    for name, weight in gated.state_dict().items():
        if not name.startswith("encoder."):
            assert torch.equal(weight, state[name]), name

    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "exp"), "--json"]) == 0
    gates = json.loads(capsys.readouterr().out)
    assert gates["actual_sparsity"] == pytest.approx(report["sparsity"])
    assert main(["inspect", str(tmp_path / "cut"), "--json"]) == 0
    cut = json.loads(capsys.readouterr().out)
    assert cut["amounts"]["params"]["encoder"] == numel
    # units and costs now: what the gates promise is what the cut network has
    for name in ("rows", "amounts"):
        assert gates[name] == cut[name], name
    for cost, amounts in cut["amounts"].items():
        assert sum(row["amounts"][cost] for row in cut["rows"]) == amounts["model"]
        assert sum(row["shares"][cost] for row in cut["rows"]) == pytest.approx(1)
    assert main(["inspect", str(tmp_path / "cut")]) == 0
    assert "encoders.0.self_attn" in capsys.readouterr().out


def message(capsys, *argv) -> str:
    """The error of a command that must fail without a stack trace."""
    assert main([str(word) for word in argv]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    steps, said, reason = err.partition(f"espnet-l0prune {argv[0]}: ")
    assert said
    assert all(line.startswith(f"{argv[0]}, ") for line in steps.splitlines())
    return reason


def test_cut_refuses_what_is_not_ready(tmp_path, capsys):
    save(tmp_path / "moving", sparsity=None)
    out = tmp_path / "out"
    err = message(capsys, "cut", tmp_path / "moving", "--out", out)
    assert "not frozen yet" in err
    assert "target 0.3" in err

    save(tmp_path / "missed", sparsity=0.2)
    err = message(capsys, "cut", tmp_path / "missed", "--out", out)
    assert "misses its budget (params: actual 0.2" in err

    save(tmp_path / "dense", None, encoder="conformer", model="espnet",
         sparsity_scheduler=None)  # fmt: skip
    assert "has no gates" in message(capsys, "cut", tmp_path / "dense", "--out", out)
    assert "no such checkpoint" in message(
        capsys, "cut", tmp_path / "dense", "--out", out, "--checkpoint", "9epoch.pth"
    )
    assert "cannot be read" in message(capsys, "cut", tmp_path / "none", "--out", out)
    assert not out.exists()


def test_a_plan_says_what_stays_whatever_the_gates_are(tmp_path, capsys):
    """That of one cut, for gates that have not settled; or for another goal's."""
    save(tmp_path / "settled")
    assert main(["cut", str(tmp_path / "settled"), "--out", str(tmp_path / "cut")]) == 0
    plan = tmp_path / "cut/plan.json"
    save(tmp_path / "moving", sparsity=None)
    out = tmp_path / "planned"
    args = [str(tmp_path / "moving"), "--plan", str(plan), "--out", str(out)]
    assert main(["cut", *args]) == 0
    assert (out / "plan.json").read_text() == plan.read_text()
    structures = [folder / "structure.yaml" for folder in (tmp_path / "cut", out)]
    assert structures[0].read_text() == structures[1].read_text()
    assert json.loads((out / "cut.json").read_text())["difference"]["float64"] <= 1e-10

    kept = json.loads(plan.read_text())
    name = "encoders.0.feed_forward"
    kept[name]["ffn_channels"] = kept[name]["ffn_channels"][:7]
    plan.write_text(json.dumps({name: kept[name]}))  # all of the others
    assert main(["cut", *args, "--force"]) == 0
    assert json.loads((out / "plan.json").read_text())[name] == kept[name]
    structure = yaml.safe_load((out / "structure.yaml").read_text())
    assert structure[name]["ffn_channels"] == 7
    assert structure["encoders.1.feed_forward"]["ffn_channels"] == 300

    for text, said in (
        ("[1]", "a plan is [1]; expected a mapping"),
        ('{"encoders.7": {}}', "it names 'encoders.7', which this network does not"),
        ("{", "plan.json"),
    ):
        plan.write_text(text)
        err = message(capsys, "cut", *args, "--force")
        assert f"{plan} cannot be the plan: " in err
        assert said in err
        assert "Expected the plan.json of a cut of the same network" in err


def test_cut_refuses_more_than_was_asked_for(tmp_path, capsys):
    """Closed further than the units are coarse: the checkpoint of another run."""
    save(tmp_path / "exp", sparsity=0.6)
    err = message(capsys, "cut", tmp_path / "exp", "--out", tmp_path / "out")
    assert "misses its budget (params: actual 0.6" in err
    assert not (tmp_path / "out").exists()


def test_how_far_beyond_a_target_the_coarsest_unit_may_bring_a_plan(tmp_path):
    """What any one group of units takes or gives back, by trying each."""
    conf = {"units": ["conv_modules", "ffn_channels"], "round_to": 4}
    net = model(encoder_conf={**FINE, **conf})
    found = budget(net)
    decide_(net.encoder.sites(), select(found, {"params": 0.1}))
    opened, steps = found.opened(), {"params": [], "macs": []}
    before = found.sparsity(opened)
    for row, gate in enumerate(found.gates.values()):
        for value in (0, 1):
            units = (opened[row, : len(gate.log_alpha)] != value).nonzero().flatten()
            if len(units):
                changed = opened.clone()
                changed[row, units[: gate.round_to]] = value
                for cost, after in found.sparsity(changed).items():
                    steps[cost].append(abs(float(after - before[cost])))
    for cost, values in steps.items():
        assert largest_step(found, {cost: 0.1}) == pytest.approx(max(values))
        assert max(values) < 0.2
    both = largest_step(found, dict.fromkeys(steps, 0.1))
    assert both == pytest.approx(max(max(values) for values in steps.values()))


class InterleavedHeads(AttentionSite):
    """By mistake, a head owns every d_k-th of the queries, keys and values."""

    def unit_claims(self):
        for claim in super().unit_claims():
            mistaken = claim.kind == "heads" and not claim.folds
            swapped = replace(claim, inner=claim.outer, outer=claim.inner)
            yield swapped if mistaken else claim


class ChannelsWithNorm(FeedForwardSite):
    """By mistake, channels own the norm too, of which a cut leaves every feature."""

    def unit_claims(self):
        yield from super().unit_claims()
        yield Claim(self.norm, "weight", 0, "ffn_channels", whole=True)


@pytest.mark.parametrize(
    ("branch", "site", "said"),
    [
        ("self_attn", InterleavedHeads, "the two networks differ by"),
        ("feed_forward", ChannelsWithNorm, "its gates promised"),
    ],
)
def test_a_cut_with_a_mistake_in_claims_is_not_written(
    branch, site, said, tmp_path, capsys, monkeypatch
):
    """As whoever adds a kind of branch may make it: see docs/extending.md."""
    place = ConformerBlock.layout[branch]._replace(sites=(site,))
    monkeypatch.setitem(ConformerBlock.layout, branch, place)
    save(tmp_path / "exp")
    err = message(capsys, "cut", tmp_path / "exp", "--out", tmp_path / "out")
    assert said in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exp"]


def test_cut_refuses_damaged_checkpoints(tmp_path, capsys):
    save(tmp_path / "exp")
    path, out = tmp_path / "exp/latest.pth", tmp_path / "out"
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)

    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in message(capsys, "cut", tmp_path / "exp", "--out", out)
    path.write_bytes(b"")
    assert "cannot be loaded" in message(capsys, "cut", tmp_path / "exp", "--out", out)
    torch.save({**state, "left.over": torch.zeros(1)}, path)
    assert "left.over" in message(capsys, "cut", tmp_path / "exp", "--out", out)
    torch.save({k: v for k, v in state.items() if k != "ctc.ctc_lo.bias"}, path)
    assert "ctc.ctc_lo.bias" in message(capsys, "cut", tmp_path / "exp", "--out", out)
    assert not out.exists()


class Touch:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_strangers_checkpoint_runs_no_code(tmp_path, capsys):
    save(tmp_path / "exp")
    torch.save({"x": Touch(tmp_path / "touched")}, tmp_path / "exp/latest.pth")
    out = tmp_path / "out"
    assert "cannot be loaded" in message(capsys, "cut", tmp_path / "exp", "--out", out)
    assert not (tmp_path / "touched").exists()


def test_an_earlier_result_survives(tmp_path, capsys, monkeypatch):
    save(tmp_path / "exp")
    command = ["cut", str(tmp_path / "exp"), "--out", str(tmp_path / "cut")]
    assert main(command) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "cut").iterdir()}
    assert "exists; expected a new folder" in message(capsys, *command)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:  # the disk fills while the result is written
        patch.setattr(torch, "save", full)
        assert "No space left" in message(capsys, *command, "--force")
    assert {p.name: p.read_bytes() for p in (tmp_path / "cut").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "exp"]
    assert main([*command, "--force"]) == 0
    (tmp_path / "link").symlink_to("cut")
    command[-1] = str(tmp_path / "link")
    assert main([*command, "--force"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "exp", "link"]
    assert (tmp_path / "link").is_symlink()


def test_force_replaces_nothing_but_a_cut(tmp_path, capsys):
    save(tmp_path / "exp")
    before = sorted(tmp_path.rglob("*"))
    for out in (tmp_path / "exp", tmp_path):
        err = message(capsys, "cut", tmp_path / "exp", "--out", out, "--force")
        assert "is no earlier cut" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_an_output_that_cannot_be_made(tmp_path, capsys):
    save(tmp_path / "exp")
    err = message(capsys, "cut", tmp_path / "exp", "--out", "/dev/full/cut")
    assert "/dev/full" in err


def test_verify_tells_different_models_apart(tmp_path, capsys):
    save(tmp_path / "exp")
    assert main(["cut", str(tmp_path / "exp"), "--out", str(tmp_path / "cut")]) == 0
    path = tmp_path / "cut/model.pth"
    state = torch.load(path, weights_only=True)
    state["encoder.after_norm.weight"][0] += 1e-6
    torch.save(state, path)
    capsys.readouterr()
    assert "differ by" in message(capsys, "verify", tmp_path / "exp", tmp_path / "cut")

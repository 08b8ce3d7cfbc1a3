"""A probe of real trained models, against cuts, against adopt, and by hand."""

import copy
import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import whisper
import yaml
from espnet2.bin.pack import main as pack

from espnet_l0prune.cli import main
from espnet_l0prune.core.candidates import candidates_of, closing
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.plan import plan_of
from espnet_l0prune.core.steps import how_far
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.choice import Choice
from espnet_l0prune.deploy.probe import gated, probe, probe_experiment
from espnet_l0prune.deploy.source import read_source
from espnet_l0prune.plugin.counting import make_budget, promised_time, sites_of
from espnet_l0prune.plugin.divergence import harms_of
from espnet_l0prune.plugin.options import make_goal
from espnet_l0prune.plugin.utterances import read_utterances
from espnet_l0prune.report.probed import pictures
from espnet_l0prune.testing.runs import UTTERANCES, make_audio, make_data, run
from espnet_l0prune.testing.s3prl import publish as publish_s3prl
from espnet_l0prune.testing.s3prl import save_dense as save_s3prl
from espnet_l0prune.testing.whisper import NAME, save_whisper
from espnet_l0prune.testing.whisper import publish as publish_whisper
from tests.deploy.test_reconstruct import STOCK
from tests.plugin.test_time import profile_of

BEST = {"best_model_criterion": [["valid", "acc", "max"]], "optim_conf": {"lr": 1e-2}}
DATA = "train_data_path_and_name_and_type"
UNITS = ["heads", "ffn_channels", "conv_channels", "frontend_channels", "blocks"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    make_data(folder)
    run(folder, folder / "exp", max_epoch=20, **BEST, **STOCK)
    return folder / "exp"


def loaded(dense, units="default", scope="encoder"):
    choice = Choice(units=units, scope=scope)
    model, args = gated(*read_source(dense, None, dense / "none", choice), choice)
    return model, make_budget(model, make_goal(args)), read_utterances(args, 3)


def posteriors(model, utterance) -> dict[str, torch.Tensor]:
    """Log-probabilities of both heads, (positions, classes), by ESPnet's own parts."""
    batch = {name: value.clone() for name, value in utterance.items()}
    memory, lengths = model.encode(batch["speech"], batch["speech_lengths"])
    text = batch["text"]
    start = F.pad(text, (1, 0), value=model.sos)
    decoded, _ = model.decoder(memory, lengths, start, batch["text_lengths"] + 1)
    return {
        "ctc": model.ctc.log_softmax(memory)[0],
        "att": decoded[0].log_softmax(-1),
    }


@pytest.mark.parametrize(
    ("scope", "units"), [("encoder", UNITS), ("encoder", "all"), ("model", "default")]
)
def test_masked_equals_cut_and_closing_nothing_is_0(dense, scope, units):
    """The divergence of a closed place is that of the model that was cut there; and what
    it saves is what the cut removes."""
    model, budget, utterances = loaded(dense, units, scope)
    model.double()
    for utterance in utterances:
        utterance["speech"] = utterance["speech"].double()
    candidates = candidates_of(budget)
    closings = [one.whole for one in candidates]
    closings += [one.half for one in candidates if one.half is not None]
    nothing, *harms = harms_of(model, utterances, [{}, *closings])
    assert nothing.kls == {"ctc": 0.0, "att": 0.0}
    with torch.no_grad():
        losses = [model(**copy.deepcopy(one))[1]["loss_task"] for one in utterances]
        whole = [posteriors(model, one) for one in utterances]
    assert nothing.loss == pytest.approx(float(sum(losses)) / 3, rel=1e-12)
    assert ("src_heads" in {kind for _, kind in budget.gates}) == (scope == "model")

    network = model if scope == "model" else model.encoder
    for units, harm in zip(closings, harms, strict=True):
        with closing(units):
            plan, saved = plan_of(sites_of(model)), budget.actual()
        small = copy.deepcopy(model)
        cut_(small, sites_of(small), plan)
        with torch.no_grad():
            found = [posteriors(small, one) for one in utterances]
            loss = sum(float(small(**copy.deepcopy(one))[0]) for one in utterances) / 3
        for head, kl in harm.kls.items():
            by_hand = sum(
                float((a[head].exp() * (a[head] - b[head])).sum())
                for a, b in zip(whole, found, strict=True)
            )
            assert kl == pytest.approx(by_hand / 3, rel=1e-8, abs=1e-10)
            assert kl >= 0
        assert harm.loss == pytest.approx(loss, rel=1e-10)
        left = small if scope == "model" else small.encoder
        share = 1 - count_parameters(left) / count_parameters(network)
        assert saved["params"] == pytest.approx(share, abs=1e-12)
        counted = make_budget(small, Goal(scope=scope)).totals
        share = 1 - counted["macs"] / budget.totals["macs"]
        assert saved["macs"] == pytest.approx(share, abs=1e-12)


def state_of(model) -> list:
    """All that a probe could leave changed."""
    return [
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [module.training for module in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    ]


def test_the_model_and_what_is_drawn_are_left_as_they_were(dense):
    model, budget, utterances = loaded(dense)
    model.train()
    model.decoder.eval()
    before = state_of(model)
    found = probe(model, budget, "encoder", utterances)
    weights, *rest = state_of(model)
    assert all(torch.equal(weights[name], tensor) for name, tensor in before[0].items())
    assert rest == before[1:]
    assert found == probe(model, budget, "encoder", utterances)


def words(dense, *more: object) -> list[str]:
    return ["probe", str(dense), "--utterances", "3", *map(str, more)]


def test_it_is_the_same_each_time_and_on_the_utterances_asked_for(dense):
    choice = Choice(units=["heads"])
    found = probe_experiment(dense, None, choice, 3)
    np.random.rand(5)
    torch.rand(5)
    assert found == probe_experiment(dense, None, choice, 3)
    assert found.utterances == 3
    assert probe_experiment(dense, None, choice, 100).utterances == UTTERANCES
    others = probe_experiment(dense, None, choice, 3, dense.parent)  # the same files
    assert others == found


def test_how_long_the_rest_takes():
    assert how_far("one", 1, 4, 10.0) == "one, about 30 seconds left"
    assert how_far("all", 2, 2, 99.0) == "all, about 0 seconds left"
    assert how_far("two", 10, 4000, 10.0) == "two, about 1 hour and 6 minutes left"


def test_what_machines_and_people_get(dense, tmp_path, capsys):
    out = tmp_path / "probe"
    assert main(words(dense, "--out", out, "--json")) == 0
    seen = capsys.readouterr()
    found = json.loads(seen.out)
    assert found == json.loads((out / "probe.json").read_text())
    names = {"probe.json", "worth_encoder.png", "curves.png"}
    assert {path.name for path in out.iterdir()} == names
    assert "closing 14 parts and 10 halves, one after another" in seen.err
    assert "utterance 3 of 3, about " in seen.err
    assert found["totals"].keys() == {"params", "macs"}
    prices = [
        min(sum(one["harm"]["kls"].values()) / sum(one["saved"].values()) for one in both)
        for worth in found["worths"]
        for both in [[x for x in (worth["whole"], worth["half"]) if x is not None]]
    ]
    assert prices == sorted(prices)
    for cost, points in found["curves"].items():
        reached = found["reachable"][cost]
        targets = [tenth / 10 for tenth in range(1, 10) if tenth / 10 <= reached]
        assert [point["target"] for point in points] == targets
        for point in points:
            assert point["closed"]["saved"][cost] >= point["target"]

    assert main(words(dense, "--out", out)) == 1
    assert "exists; expected a new folder" in capsys.readouterr().err
    assert main(words(dense)) == 0
    shown = capsys.readouterr().out
    assert "encoders.1 (whole block)" in shown
    assert "encoders.0.self_attn heads" in shown
    assert "50% of the MACs" in shown
    assert "for no forecast" in shown


def test_the_pictures_have_each_place(dense):
    found = probe_experiment(dense, None, Choice(scope="model"), 2)
    encoder, decoder, curves = pictures(found)
    assert [p.name for p in (encoder, decoder)] == ["worth_encoder", "worth_decoder"]
    (axes,) = encoder.figure.axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["FFN 1", "attention", "conv", "FFN", "block"]
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 2 + 2 * 5
    kls = {worth.place: worth.whole.harm.kl for worth in found.worths}
    assert max(kls.values()) < 100
    assert f"{kls['encoder.encoders.1.feed_forward']:.2g}" in texts
    assert f"conv 2\n{kls['encoder.embed.conv.2']:.2g}" in texts
    assert encoder.figure.get_suptitle() == encoder.caption
    (axes,) = curves.figure.axes
    assert [line.get_label() for line in axes.lines] == ["parameters", "MACs"]
    for line, points in zip(axes.lines, found.curves.values(), strict=True):
        losses = [found.loss, *(point.closed.harm.loss for point in points)]
        assert line.get_ydata().tolist() == losses


@pytest.mark.parametrize("units", ["default", "heads,ffn_channels"])
def test_adopt_accepts_what_is_just_below_the_limit_alone(dense, units, tmp_path, capsys):
    assert main(words(dense, "--utterances", "1", "--units", units, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    for cost, limit in found["reachable"].items():
        command = ["adopt", str(dense), "--units", units, "--no_data", f"--{cost}"]
        beyond = [*command, str(limit + 1e-6), "--out", str(tmp_path / "no")]
        assert main(beyond) == 1
        assert "these units reach at most" in capsys.readouterr().err
        below = [*command, str(limit - 1e-6), "--out", str(tmp_path / cost)]
        assert main(below) == 0, capsys.readouterr().err


def test_what_is_worth_nothing_comes_first(dense, tmp_path):
    """A feed-forward module without output: what a cut leaves of it is what it was."""
    copied = tmp_path / "exp"
    copied.mkdir()
    (copied / "config.yaml").write_text((dense / "config.yaml").read_text())
    state = torch.load(dense / "valid.acc.ave.pth")
    for name in ("weight", "bias"):
        state[f"encoder.encoders.1.feed_forward.w_2.{name}"].zero_()
    torch.save(state, copied / "model.pth")
    found = probe_experiment(copied, None, Choice(), 2)
    first = found.worths[0]
    assert (first.place, first.kind) == (
        "encoder.encoders.1.feed_forward",
        "ffn_channels",
    )
    assert first.whole.harm.kl == first.half.harm.kl == 0
    assert first.whole.harm.loss == found.loss
    assert first.whole.units == first.size == 12
    assert all(worth.price > 0 for worth in found.worths[1:])


def test_what_it_refuses(dense, tmp_path, capsys):
    def refused(*more: object, source=dense) -> str:
        assert main(words(source, *more)) == 1
        return capsys.readouterr().err

    assert "--utterances is 0; expected a whole number in" in refused("--utterances", "0")
    said = refused("--data", tmp_path)
    assert f"are not here: {tmp_path}/feats, {tmp_path}/text of its" in said
    assert f"expected files in {tmp_path} with the names of the training's" in said
    assert "units has 'wings'" in refused("--units", "heads,wings")

    config = yaml.safe_load((dense / "config.yaml").read_text())
    changed = tmp_path / "exp"
    changed.mkdir()
    (changed / "model.pth").symlink_to(dense / "valid.acc.ave.pth")

    def change(**more) -> Path:
        (changed / "config.yaml").write_text(yaml.safe_dump(config | more))
        return changed

    data = config["train_data_path_and_name_and_type"]
    same = [*data, ["elsewhere/feats", "speech2", "npy"]]
    said = refused("--data", tmp_path, source=change(**{DATA: same}))
    assert "feats and elsewhere/feats have the same name" in said
    said = refused(source=change(task="espnet3.systems.esp2_asr.task.ASRTask"))
    assert "is of ESPnet3, whose data `probe` does not read" in said
    np.save(tmp_path / "short.npy", np.zeros((3, 20), np.float32))
    (tmp_path / "feats").write_text(f"u00 {tmp_path}/short.npy\n")
    (tmp_path / "text").write_text("u00 A\n")
    assert "all 1 utterances are too short" in refused("--data", tmp_path)
    assert not (tmp_path / "out").exists()


def test_time_is_what_a_profile_promises_of_the_cut(dense, tmp_path):
    model, budget, _ = loaded(dense, UNITS)
    counted = {"parameters": budget.totals["params"], "macs": budget.totals["macs"]}
    counted = {name: round(amount) for name, amount in counted.items()}
    profile = dataclasses.replace(
        profile_of(copy.deepcopy(model.encoder).double()), **counted
    )
    file = tmp_path / "device.json"
    file.write_text(json.dumps(profile.plain()))
    found = probe_experiment(dense, None, Choice(units=UNITS, profile=file), 1)
    assert found.totals["time"] == pytest.approx(promised_time(bare(model), profile))
    saved = {(worth.place, worth.kind): worth.whole.saved for worth in found.worths}
    for one in candidates_of(budget):
        with closing(one.whole):
            small = bare(model)
        share = 1 - promised_time(small, profile) / found.totals["time"]
        time = saved[f"encoder.{one.place}", one.kind]["time"]
        assert time == pytest.approx(share, abs=1e-12)
    assert [point.target for point in found.curves["time"]]


def bare(model):
    """The encoder, cut where its gates are closed, and without gates."""
    small = copy.deepcopy(model)
    cut_(small, sites_of(small), plan_of(sites_of(model)))
    return small.encoder


def test_a_self_supervised_front_end(tmp_path, capsys):
    folder = tmp_path / "exp"
    save_s3prl(folder, publish_s3prl(tmp_path), **make_audio(tmp_path), num_workers=0)
    found = probe_experiment(folder, None, Choice(scope="model"), 1)
    places = {worth.place for worth in found.worths}
    blocks = "frontend.upstream.upstream.model.encoder.layers"
    assert {f"{blocks}.0", f"{blocks}.1.fc2", "encoder.encoders.0"} <= places
    names = [picture.name for picture in pictures(found)]
    assert names == ["worth_frontend", "worth_encoder", "worth_decoder", "curves"]
    assert found.worths[0].whole.harm.kls.keys() == {"ctc", "att"}

    other = tmp_path / "other"
    conf = {"frontend_conf": {"upstream": "fbank"}, "multilayer_feature": True}
    sizes = {"preencoder_conf": {"input_size": 240, "output_size": 20}}
    save_s3prl(other, conf, **make_audio(tmp_path), **sizes, num_workers=0)
    assert main(words(other, "--scope", "frontend")) == 1
    said = capsys.readouterr().err
    assert f"nothing in the frontend of {other} has such units" in said


def test_whisper(tmp_path):
    folder, choice = tmp_path / "exp", Choice(scope="model")
    try:
        save_whisper(folder, publish_whisper(tmp_path))
        model, args = gated(*read_source(folder, None, folder / "none", choice), choice)
        budget = make_budget(model, make_goal(args))
        speech = torch.randn(1, 8000, generator=torch.manual_seed(0))
        one = {"speech": speech, "speech_lengths": torch.tensor([8000])}
        one |= {"text": torch.tensor([[3, 4, 5]]), "text_lengths": torch.tensor([3])}
        found = probe(model, budget, "model", [one])
    finally:
        whisper._MODELS.pop(NAME, None)
    assert {worth.place.split(".")[0] for worth in found.worths} == {"encoder", "decoder"}
    assert all(worth.whole.harm.kls.keys() == {"att"} for worth in found.worths)
    assert all(worth.price > 0 for worth in found.worths)


def test_a_zip_of_the_model_zoo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    make_data(Path("data"))
    run(Path("data"), Path("exp"), max_epoch=1, **BEST, **STOCK)
    monkeypatch.chdir(tmp_path / "exp")
    pack([
        "asr", "--asr_train_config", "config.yaml", "--asr_model_file",
        "valid.acc.ave.pth", "--outpath", str(tmp_path / "packed.zip"),
    ])  # fmt: skip
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(words("packed.zip", "--json")) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert main(words("exp", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == found
    Path("data").rename("other")
    assert main(words("packed.zip")) == 1
    said = capsys.readouterr().err
    assert "the experiment's training data are not here: data/feats, data/text" in said
    (Path("other/feats")).write_text(
        Path("other/feats").read_text().replace("data", "other")
    )
    assert main(words("packed.zip", "--data", "other", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert {path.name for path in Path().iterdir()} == {
        "exp",
        "exp.yaml",
        "other",
        "packed.zip",
    }

"""Models that ESPnet has trained, as XEUS, are its front ends to the bit when gates are
open, and go the whole way."""

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from espnet2.asr.frontend.espnet_ssl import ESPnetSSLFrontend

from espnet_l0prune.cli import main
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.counting import make_budget, sites_of
from espnet_l0prune.plugin.experiment import load_experiment, load_model
from espnet_l0prune.plugin.network import L0ESPnetSSLFrontend
from espnet_l0prune.plugin.structure_plot import structure_figure, units_left
from espnet_l0prune.testing.espnet_ssl import publish
from espnet_l0prune.testing.models import arguments
from espnet_l0prune.testing.runs import train_on_noise
from espnet_l0prune.testing.s3prl import save_dense
from tests.plugin.test_s3prl import DECODE, PREENCODER, batch, elsewhere, follow

# As the first HuBERT: one norm in the convolutions; and with blocks of another kind
OTHER = {
    "frontend_conf": {"norm_mode": "group_norm", "bias": False, "normalize_output": True},
    "normalize": "utterance_mvn",
    "encoder": "conformer",
    "encoder_conf": {
        **{"output_size": 16, "attention_heads": 4, "linear_units": 12},
        **{"num_blocks": 2, "input_layer": None, "cnn_module_kernel": 3},
    },
}
STILL = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0}
KINDS = {
    "xeus": {},
    "dim1": {"frontend_conf": {"layer_norm_cls": "dim1"}},
    "other": OTHER,
}


def speech() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 8000), torch.tensor([8000, 6000, 3000])


def build(options: dict, **changes: object):
    """A model with gates in such a front end."""
    conf = {"input_size": None, "frontend": "l0_espnet_ssl", **PREENCODER, **changes}
    return build_model(arguments(frontend_conf=options, **conf))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_open_gates_are_espnet_to_the_bit(kind, training, tmp_path):
    """In training with masks, dropout, and the gradients of a step."""
    options = publish(tmp_path, **KINDS[kind])
    stock, ours = (f(**options) for f in (ESPnetSSLFrontend, L0ESPnetSSLFrontend))
    missing = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert len(missing.missing_keys) > 8
    assert all(key.endswith(".log_alpha") for key in missing.missing_keys)
    found = []
    for frontend in (stock, ours):
        torch.manual_seed(1)
        out, lengths = frontend.train(training)(*speech())
        found.append((out, lengths))
        out.square().mean().backward()
    assert all(map(torch.equal, *found))
    assert found[0][1].tolist() == [24, 18, 9]
    theirs = dict(ours.named_parameters())
    grads = {n: p.grad for n, p in stock.named_parameters() if p.grad is not None}
    assert (len(grads) > 50) == training  # before any update, ESPnet computes none else
    for name, grad in grads.items():
        assert torch.equal(grad, theirs[name].grad), name


@pytest.mark.parametrize("mask_feats", [True, False])
@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("blocks", [1, 2])
def test_what_trains_has_a_gradient(mask_feats, several, blocks, tmp_path):
    """Distributed training waits for all of them."""
    options = publish(tmp_path, encoder_conf={"num_blocks": blocks})
    options |= {"mask_feats": mask_feats, "multilayer_feature": several}
    ours = L0ESPnetSSLFrontend(**options).train()
    ours(*speech())[0].square().mean().backward()
    trained = {n: p.grad for n, p in ours.named_parameters() if p.requires_grad}
    assert len(trained) > 30
    assert not [name for name, grad in trained.items() if grad is None]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_published_is_not_needed_to_build_it(kind, tmp_path):
    options = publish(tmp_path, **KINDS[kind])
    ours = L0ESPnetSSLFrontend(**options, units=[]).eval()
    options["frontend_conf"]["path_or_url"] = "somebody/published"
    again = L0ESPnetSSLFrontend(**{**options, **ours.portable_conf()}, units=[]).eval()
    assert again.portable_conf() == ours.portable_conf()
    assert str(tmp_path) not in str(ours.portable_conf())
    again.load_state_dict(ours.state_dict())
    assert torch.equal(*(f(*copy.deepcopy(HEARD))[0] for f in (ours, again)))


HEARD = speech()


def test_statistics_are_weights(tmp_path):
    """Without the file that they once came from."""
    stats = tmp_path / "stats.npz"
    ones = np.arange(1, 13, dtype="float32")
    np.savez(stats, count=2, sum=ones, sum_square=ones**2)
    normalize_conf = {"stats_file": str(stats)}
    options = publish(tmp_path, normalize="global_mvn", normalize_conf=normalize_conf)
    ours = L0ESPnetSSLFrontend(**options).eval()
    names = [site.name for site in ours.sites() if "frontend.layers" in site.name]
    assert len(names) == 6  # the last channels have statistics, and stay
    stats.unlink()
    again = L0ESPnetSSLFrontend(**{**options, **ours.portable_conf()}).eval()
    again.load_state_dict(ours.state_dict())
    assert again.portable_conf() == ours.portable_conf()
    assert torch.equal(*(f(*copy.deepcopy(HEARD))[0] for f in (ours, again)))


def test_other_models_are_pruned_as_far_as_they_are_known(tmp_path):
    """Channels that are convolved one by one stay; a subsampling is pruned as any."""
    first = publish(tmp_path, encoder_conf={"input_layer": "linear"}, preencoder=None)
    sites = L0ESPnetSSLFrontend(**first).sites()
    assert sum("frontend.layers" in site.name for site in sites) == 7
    shapes = [[4, 10, 5], [4, 3, 2]]
    conf = {"frontend_conf": {"conv_mode": "depth_only", "shapes": shapes}}
    other = L0ESPnetSSLFrontend(**publish(tmp_path, **conf))
    assert not [site for site in other.sites() if "frontend.layers" in site.name]
    assert {"heads", "cgmlp_channels"} <= {k for s in other.sites() for k in s.gates}
    features = {"frontend": "default", "frontend_conf": {"n_mels": 20}}
    features |= {"preencoder": None, "encoder_conf": {"input_layer": "conv2d"}}
    mel = L0ESPnetSSLFrontend(**publish(tmp_path, **features)).eval()
    assert mel.sites()[0].name == "upstream.encoder.embed.conv.0"
    assert len(mel(*speech())[0]) == 3


def test_init_leaves_the_published_weights(tmp_path):
    options = publish(tmp_path)
    published = ESPnetSSLFrontend(**options).state_dict()
    found = build(options, init="xavier_uniform").frontend.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in published.items())


@pytest.mark.parametrize("name", ["espnet_ssl", "l0_espnet_ssl"])
def test_no_code_in_a_file_is_run(name, tmp_path):
    options, ran = publish(tmp_path), tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    torch.save({"weight": Code()}, options["frontend_conf"]["path_or_url"])
    with pytest.raises(ValueError, match="more than plain tensors"):
        build(options, frontend=name, encoder_conf={"units": []})
    assert not ran.exists()


def test_a_published_model_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"path_or_url in .* is None; .* espnet/xeus"):
        L0ESPnetSSLFrontend()
    options = publish(tmp_path)
    (tmp_path / "config.yaml").write_text("encoder: conformer")
    with pytest.raises(ValueError, match=r"config.yaml lacks frontend, .* task ssl has"):
        L0ESPnetSSLFrontend(**options)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"config.yaml cannot be read .* task ssl has"):
        L0ESPnetSSLFrontend(**options)


def test_weights_that_a_file_lacks_are_named(tmp_path, caplog):
    options = publish(tmp_path)
    file = options["frontend_conf"]["path_or_url"]
    state = torch.load(file)
    del state["encoder.after_norm.weight"]
    torch.save(state, file)
    L0ESPnetSSLFrontend(**options)
    assert "has no encoder.after_norm.weight, which are left" in caplog.text


def test_what_cannot_build_a_model():
    with pytest.raises(ValueError, match=r"upstream_config .* lacks frontend, .* wrote"):
        L0ESPnetSSLFrontend(upstream_config={"encoder": "conformer"})


def test_gates_do_not_stand_still(tmp_path):
    options = publish(tmp_path) | {"freeze_encoder_steps": 5}
    L0ESPnetSSLFrontend(**options, units=[])
    with pytest.raises(ValueError, match=r"freeze_encoder_steps is 5; expected 0, as ga"):
        L0ESPnetSSLFrontend(**options)


def test_stock_front_ends_are_counted_alike(tmp_path):
    options = publish(tmp_path)
    stock, ours = (
        make_budget(build(options, **more), Goal(scope="frontend"))
        for more in (
            {"frontend": "espnet_ssl", "encoder": "conformer", "model": "espnet"},
            {},
        )
    )
    assert stock.totals == ours.totals


def test_adopting(tmp_path, capsys):
    options = publish(tmp_path) | {"freeze_encoder_steps": 5}
    frozen = ["frontend.upstream"]
    save_dense(tmp_path / "dense", options, frontend="espnet_ssl", freeze_param=frozen)
    command = ["adopt", str(tmp_path / "dense"), "--no_data", "--params", "0.3"]
    for scope in ("encoder", "frontend", "model"):
        out = tmp_path / scope
        assert main([*command, "--scope", scope, "--out", str(out)]) == 0
        printed, gated = capsys.readouterr().out, scope != "encoder"
        for kind in ("prune", "finetune"):
            conf = yaml.safe_load((out / f"{kind}.yaml").read_text())
            assert conf["frontend"] == "l0_espnet_ssl"
            steps = conf["frontend_conf"]["freeze_encoder_steps"]
            assert steps == (0 if gated else 5)
            assert conf["freeze_param"] == ([] if gated else frozen)
        assert ("freeze_encoder_steps: 5 is left out" in printed) == gated


def student_of(folder: Path, options: dict):
    """A student without dropout, of a dense model with such a front end."""
    encoder = {"encoder_conf": {**ENCODER, **STILL}}
    save_dense(folder / "dense", options, frontend="espnet_ssl", **encoder)
    files = {
        "teacher_config": str(folder / "dense/config.yaml"),
        "teacher_model_file": str(folder / "dense/model.pth"),
    }
    more = {"decoder_conf": STILL, "model_conf": files}
    student = build(options, encoder_conf={"units": [], **STILL}, **more)
    student.load_teacher_(torch.optim.SGD(student.parameters()))
    return student


ENCODER = arguments().encoder_conf


def test_the_teacher_hears_the_same_masks(tmp_path):
    """So that a student that is no other than its teacher has nothing to learn."""
    options = publish(tmp_path, encoder_conf=STILL)
    student = student_of(tmp_path, options)
    assert student.teacher.has_own_frontend
    student.load_state_dict(student.teacher.model.state_dict(), strict=False)
    for site in student.frontend.sites():
        for gate in site.gates.values():
            gate.log_alpha.data.fill_(100.0)
    masks = student.teacher.model.frontend.upstream.util_modules["mask"]
    student.train()
    outputs = []
    for _ in range(2):
        stats = student(**batch())[1]
        assert float(stats["loss_frontend_layer"]) < 1e-10
        outputs.append(float(stats["loss_task"]))
    assert outputs[0] != outputs[1]  # other states were hidden
    assert student.teacher.model.frontend.upstream.util_modules["mask"] is masks
    frontend = student.teacher.model.frontend
    assert [name for name, m in frontend.named_modules() if m.training] == []
    assert float(student.eval()(**batch())[1]["loss_frontend_layer"]) < 1e-10
    with torch.no_grad():
        for parameter in student.frontend.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
        mine, theirs = (
            net.frontend.upstream.inference_encode(
                batch()["speech"], batch()["speech_lengths"]
            )
            for net in (student, student.teacher.model)
        )
        found = student(**batch())[1]["loss_frontend_layer"]
    valid = torch.arange(mine[1][0].size(1)) < mine[2][:, None]
    errors = [
        (a - b)[valid].square().mean() for a, b in zip(mine[1], theirs[1], strict=True)
    ]
    assert len(errors) == 2
    assert float(found) == pytest.approx(float(sum(errors)) / 2, rel=1e-4)
    assert found > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scope"), [("xeus", "model"), ("other", "frontend")])
def test_from_a_stock_experiment_to_a_text(kind, scope, tmp_path, capsys):
    options = publish(tmp_path, **KINDS[kind])
    train_on_noise(
        tmp_path,
        input_size=None,
        frontend="espnet_ssl",
        frontend_conf=options,
        **PREENCODER,
        encoder="conformer",
        model_conf={"ctc_weight": 0.5, "extract_feats_in_collect_stats": False},
    )
    dense, out, archive = (tmp_path / name for name in ("dense", "l0", "pruned.zip"))
    words = ["adopt", str(dense), "--out", str(out), "--scope", scope]
    words += ["--params", "0.4", "--macs", "0.4"]
    assert main([*words, "--epochs", "8", "--finetune_epochs", "1"]) == 0
    fitted = ["--reconstruct", "8"] if kind == "xeus" else []
    follow(capsys.readouterr().out, fitted)
    cut = yaml.safe_load((out / "cut/cut.json").read_text())
    assert all(0.4 <= share < 0.6 for share in cut["sparsity"].values())
    assert cut["difference"]["float64"] <= 1e-10
    model, _ = load_experiment(out / "finetuned", "valid.acc.ave.pth")
    assert not any(site.gates for site in sites_of(model))
    axes = structure_figure(units_left(model.frontend, "frontend"), "frontend").axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["front end", "block 1", "block 2"]
    finetuned = str(out / "finetuned")
    assert main(["inspect", finetuned]) == 0
    assert "frontend.upstream.frontend.layers.0.conv" in capsys.readouterr().out
    assert main(["export", "stock", finetuned, "--out", str(archive)]) == 1
    assert "need not have its published sizes" in capsys.readouterr().err
    graphs = tmp_path / "onnx.zip"
    assert main(["export", "onnx", finetuned, "--out", str(graphs)]) == 0
    assert main(["export", "plugin", finetuned, "--out", str(archive)]) == 0

    # where the published model is not, nor anything that was cached
    Path(options["frontend_conf"]["path_or_url"]).unlink()
    (tmp_path / "config.yaml").unlink()
    onnx, _ = load_model(*unpack_model(graphs, tmp_path / "graphs"))
    with torch.no_grad():
        ours, graph = (
            net.encode(HEARD[0][:1], HEARD[1][:1])[0] for net in (model, onnx.eval())
        )
    assert torch.allclose(ours, graph, rtol=1e-3, atol=1e-4)
    files = unpack_model(archive, tmp_path / "unpacked")
    again, _ = load_model(*files)
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    wave = tmp_path / "wave.npy"
    np.save(wave, 0.1 * np.random.default_rng(1).standard_normal(8000).astype("float32"))
    assert "decoded" in elsewhere(tmp_path / "home", DECODE, *files, wave)

"""Self-supervised front ends of s3prl's are ESPnet's to the bit, and go the whole way."""

import copy
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from espnet2.asr.frontend.s3prl import S3prlFrontend
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.deploy.foreign import check_foreign
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.counting import make_budget, sites_of
from espnet_l0prune.plugin.experiment import load_experiment, load_model, read_config
from espnet_l0prune.plugin.network import L0S3prlFrontend
from espnet_l0prune.plugin.s3prl import convolutions
from espnet_l0prune.plugin.structure_plot import structure_figure, units_left
from espnet_l0prune.testing.models import arguments
from espnet_l0prune.testing.runs import train_dense, train_on_noise, write_audio
from espnet_l0prune.testing.s3prl import KINDS, publish, save_dense
from tests.speech import read_mini_an4

PREENCODER = {
    "preencoder": "linear",
    "preencoder_conf": {"input_size": 16, "output_size": 20},
}
SELECTION = "fairseq_layers_before_residual"
DECODE = """
import sys
import numpy as np
from espnet2.bin.asr_inference import Speech2Text
config, weights, wave = sys.argv[1:]
speech2text = Speech2Text(config, weights, beam_size=2, ctc_weight=0.5)
text, *_, hypothesis = speech2text(np.load(wave))[0]
print("decoded", repr(text), float(hypothesis.score))
"""
DECODE_ALL = """
import sys
import soundfile
from espnet2.bin.asr_inference import Speech2Text
from espnet_model_zoo.downloader import ModelDownloader
archive, *waves = sys.argv[1:]
files = ModelDownloader("cache").download_and_unpack(archive)
speech2text = Speech2Text(**files, beam_size=2, ctc_weight=0.5)
for wave in waves:
    text, *_, hypothesis = speech2text(soundfile.read(wave)[0])[0]
    print(f"decoded {text}: {float(hypothesis.score):.4f}")
"""


def compute(frontend) -> dict[str, torch.Tensor]:
    """Its output; and in training, with dropout, the gradients of a step."""
    torch.manual_seed(1)
    np.random.seed(1)
    speech, lengths = torch.randn(3, 8000), torch.tensor([8000, 6000, 3000])
    out, valid = frontend(speech, lengths)
    if frontend.training:
        out.square().mean().backward()
    grads = {
        name: parameter.grad
        for name, parameter in frontend.named_parameters()
        if parameter.grad is not None
    }
    return {"out": out, "valid": valid, **grads}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_open_gates_are_espnet_to_the_bit(kind, large, training, tmp_path):
    options = publish(tmp_path, kind, large)
    stock, ours = S3prlFrontend(**options), L0S3prlFrontend(**options)
    missing = ours.load_state_dict(stock.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert missing.missing_keys
    assert all(key.endswith(".log_alpha") for key in missing.missing_keys)
    expected, found = (compute(f.train(training)) for f in (stock, ours))
    assert (len(expected) > 50) == training
    assert expected.keys() <= found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_published_is_not_needed_to_build_it(kind, tmp_path):
    options = publish(tmp_path, kind, large=True)
    ours = L0S3prlFrontend(**options, units=[]).eval()
    options["frontend_conf"]["path_or_url"] = "https://nowhere/model.pt"
    again = L0S3prlFrontend(**{**options, **ours.portable_conf()}, units=[]).eval()
    assert again.portable_conf() == ours.portable_conf()
    again.load_state_dict(ours.state_dict())
    speech, lengths = torch.randn(2, 8000), torch.tensor([8000, 5000])
    with torch.no_grad():
        assert torch.equal(ours(speech, lengths)[0], again(speech, lengths)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("several", [False, True])
def test_what_trains_has_a_gradient(kind, several, tmp_path):
    """Distributed training waits for all of them."""
    options = publish(tmp_path, kind) | {"multilayer_feature": several}
    ours = L0S3prlFrontend(**options).train()
    ours(torch.randn(2, 8000), torch.tensor([8000, 5000]))[0].square().mean().backward()
    trained = {n: p.grad for n, p in ours.named_parameters() if p.requires_grad}
    assert len(trained) > 50
    assert not [name for name, grad in trained.items() if grad is None]


def test_init_leaves_the_published_weights(tmp_path):
    options = publish(tmp_path)
    args = arguments(
        input_size=None, frontend="l0_s3prl", frontend_conf=options, **PREENCODER
    )
    args.init = "xavier_uniform"
    published = S3prlFrontend(**options).state_dict()
    found = build_model(args).frontend.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in published.items())


def test_other_blocks_stay_whole(tmp_path):
    """As those of wav2vec 2.0 with Conformer's, whose outputs differ."""
    options = publish(tmp_path, "wav2vec2")
    config = L0S3prlFrontend(**options, units=[]).portable_conf()["upstream_config"]
    config["model_cfg"] |= {"layer_type": "conformer", "depthwise_conv_kernel_size": 3}
    conformer = L0S3prlFrontend(upstream_config=config, multilayer_feature=True)
    assert conformer.sites() == []
    one = {"upstream": "wav2vec2_local", "extra_conf": {"feature_selection": SELECTION}}
    other = L0S3prlFrontend(frontend_conf={**options["frontend_conf"], **one})
    assert other.sites() == []


def test_an_unknown_upstream(tmp_path):
    with pytest.raises(ValueError, match=r"upstream .* is 'wavlm_larg'.*'wavlm_large'"):
        L0S3prlFrontend(frontend_conf={"upstream": "wavlm_larg"})
    with pytest.raises(ValueError, match=r"is None; .* such as wavlm_large"):
        L0S3prlFrontend()


def test_a_copy_reads_its_own_hidden_states(tmp_path):
    ours = L0S3prlFrontend(**publish(tmp_path)).eval()
    speech, lengths = torch.randn(2, 8000), torch.tensor([8000, 5000])
    before = ours(speech, lengths)[0]
    other = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
        after = other(speech, lengths)[0]
    assert torch.equal(ours(speech, lengths)[0], before)
    assert not torch.allclose(after, before, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_stock_front_ends_are_counted_alike(kind, tmp_path):
    options = {"input_size": None, "frontend_conf": publish(tmp_path, kind), **PREENCODER}
    stock, ours = (
        make_budget(build_model(arguments(**options, **more)), Goal(scope="frontend"))
        for more in (
            {"frontend": "s3prl", "encoder": "conformer", "model": "espnet"},
            {"frontend": "l0_s3prl"},
        )
    )
    assert stock.totals == ours.totals


def test_an_upstream_without_sites_is_left_whole():
    """As s3prl has dozens of others; this one has no weights at all."""
    options = {"frontend_conf": {"upstream": "fbank"}, "multilayer_feature": True}
    ours = L0S3prlFrontend(**options)
    assert ours.sites() == []
    assert ours.portable_conf() == {}


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("[(512,10,5)] + [(512,3,2)] * 2", [[512, 10, 5], [512, 3, 2], [512, 3, 2]]),
        ("[[4, 10, 5]]", [[4, 10, 5]]),
    ],
)
def test_convolutions_are_read_as_a_list(text, layers):
    assert convolutions(text) == layers


@pytest.mark.parametrize(
    "text",
    [
        "open('/tmp/pwned', 'w')",
        "[(512,10,5)] * 10**9",
        "[(512,10,5)] * 99999999",
        "[(512,10)]",
        "[(512,10,-5)]",
        "[(512,10,5.0)]",
        "[]",
        "(",
        "[" * 999,
        7,
    ],
)
def test_convolutions_that_are_more_than_a_list(text):
    with pytest.raises(ValueError, match="conv_feature_layers of a self-supervised mod"):
        convolutions(text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["s3prl", "l0_s3prl"])
def test_no_code_in_a_file_is_run(kind, name, tmp_path):
    """s3prl evaluates a line of the model's file, wherever that came from."""
    options, ran = publish(tmp_path, kind), tmp_path / "ran"
    file = options["frontend_conf"]["path_or_url"]
    content = torch.load(file)
    sizes = content["cfg" if kind == "wavlm" else "model_cfg"]
    sizes["conv_feature_layers"] = f"[(12,10,5)] if open({str(ran)!r}, 'w') else []"
    torch.save(content, file)
    args = arguments(input_size=None, frontend=name, frontend_conf=options, **PREENCODER)
    with pytest.raises(ValueError, match=r"conv_feature_layers of .* is .* if open"):
        build_model(args)
    assert not ran.exists()


def test_nor_in_one_of_several(tmp_path):
    options, ran = publish(tmp_path), tmp_path / "ran"
    file = options["frontend_conf"]["path_or_url"]
    content = torch.load(file)
    content["model_cfg"]["conv_feature_layers"] = f"open({str(ran)!r}, 'w')"
    torch.save(content, file)
    some = [{"frontend_type": "s3prl", **options}, {"frontend_type": "default"}]
    args = arguments(input_size=None, frontend="fused", encoder="conformer")
    args.frontend_conf, args.model = {"frontends": some}, "espnet"
    with pytest.raises(ValueError, match="conv_feature_layers of a self-supervised mod"):
        build_model(args)
    assert not ran.exists()


@pytest.mark.parametrize(
    "inner",
    [
        {"upstream": "data2vec_local", "path_or_url": "model.pt"},
        {"upstream": "distiller_url", "path_or_url": "model.pt"},
        {"upstream": "wav2vec_custom", "path_or_url": "model.pt"},
        {"upstream": "fbank", "extra_conf": {"model_config": "b.yaml"}},
        {"upstream": "hubert_local", "extra_conf": {"fairseq": True}},
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_a_strangers_file_is_only_of_a_kind_that_is_checked(inner, fused, tmp_path):
    conf = {"frontend_conf": inner}
    if fused:
        conf = {"frontends": [{"frontend_type": "s3prl", **conf}]}
    with pytest.raises(ValueError, match="and no extra_conf"):
        check_foreign({"frontend_conf": conf}, tmp_path, tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["wavlm_large", "hubert_local", "tera_960hr"])
def test_a_stranger_may_name_what_is_published(name, tmp_path):
    conf = {"frontend_conf": {"upstream": name}}
    check_foreign({"frontend_conf": conf}, tmp_path, tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"kind": "bert", "model_cfg": {"conv_feature_layers": [[4, 10, 5]]}},
        {"kind": "hubert", "model_cfg": {}},
        {"kind": "hubert", "model_cfg": 3},
        {"kind": ["hubert"], "model_cfg": {"conv_feature_layers": [[4, 10, 5]]}},
        {"kind": "hubert", "model_cfg": {"conv_feature_layers": []}, "task_cfg": 3},
        {"kind": "hubert", "model_cfg": {"conv_feature_layers": []}, "classes": 3},
    ],
)
def test_what_cannot_build_a_model(config):
    with pytest.raises(ValueError, match=r"upstream_config is .*; expected what `espnet"):
        L0S3prlFrontend(upstream_config=config)


def test_a_wrong_size_is_said_to_be_one(tmp_path):
    options = publish(tmp_path)
    found = L0S3prlFrontend(**options, units=[]).portable_conf()
    found["upstream_config"]["model_cfg"]["encoder_layers"] = "many"
    args = arguments(
        input_size=None,
        frontend="l0_s3prl",
        frontend_conf={**options, **found},
        **PREENCODER,
    )
    with pytest.raises(ValueError, match="does not describe a model that ESPnet can bui"):
        build_model(args)


def test_only_a_file_with_a_known_package(monkeypatch, tmp_path):
    options = publish(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install espnet-s3prl"):
        L0S3prlFrontend(**options)


def test_adopting_the_encoder_leaves_the_front_end_whole(tmp_path, capsys):
    options = publish(tmp_path)
    save_dense(tmp_path / "dense", options, freeze_param=["frontend.upstream"])
    command = ["adopt", str(tmp_path / "dense"), "--no_data", "--params", "0.3"]
    for scope in ("encoder", "frontend", "model"):
        out = tmp_path / scope
        assert main([*command, "--scope", scope, "--out", str(out)]) == 0
        prune = yaml.safe_load((out / "prune.yaml").read_text())
        assert prune["frontend"] == "l0_s3prl"
        gated = scope != "encoder"
        assert prune["frontend_conf"]["units"] == ("default" if gated else [])
        assert (prune["encoder"] == "l0_conformer") == (scope != "frontend")
        # weights whose gates move are trained, and others stay as they were
        assert prune["freeze_param"] == ([] if gated else ["frontend.upstream"])
        printed = capsys.readouterr().out
        assert ("freeze_param: frontend.upstream is left out" in printed) == gated


def test_adopting_all_leaves_a_recurrent_decoder_whole(tmp_path, capsys):
    options = publish(tmp_path) | {"multilayer_feature": False, "layer": 1}
    decoder = {"decoder": "rnn", "decoder_conf": {"hidden_size": 8, "num_layers": 1}}
    save_dense(tmp_path / "dense", options, **decoder)
    command = ["adopt", str(tmp_path / "dense"), "--no_data", "--params", "0.3"]
    for scope in ("encoder", "model"):
        out = tmp_path / scope
        assert main([*command, "--scope", scope, "--out", str(out)]) == 0
        prune = yaml.safe_load((out / "prune.yaml").read_text())
        assert prune["decoder"] == "rnn"
        whole = scope == "model"
        printed = capsys.readouterr().out
        assert ("decoder: rnn is left whole, as it has no kind" in printed) == whole
        # those of the front end's blocks after the layer that is read
        assert prune["unused_parameters"] == whole


def student_of(folder: Path, options: dict, **conf: object):
    """A student of a dense model with such a front end, which is its teacher."""
    save_dense(folder / "dense", options)
    args = arguments(
        input_size=None,
        frontend="l0_s3prl",
        frontend_conf={**options, **conf},
        encoder_conf={"units": []},
        model_conf={
            "teacher_config": str(folder / "dense/config.yaml"),
            "teacher_model_file": str(folder / "dense/model.pth"),
        },
        **PREENCODER,
    )
    student = build_model(args)
    student.load_teacher_(torch.optim.SGD(student.parameters()))
    return student


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "speech": 0.1 * torch.randn(3, 16_000, generator=generator),
        "speech_lengths": torch.tensor([16_000, 13_000, 11_000]),
        "text": torch.randint(2, 9, (3, 3), generator=generator),
        "text_lengths": torch.tensor([3, 2, 3]),
    }


def test_hidden_states_of_the_front_end_are_learnt(tmp_path):
    """The mean square error of each block's output, beside s3prl's own hidden states."""
    student = student_of(tmp_path, publish(tmp_path), units="default").eval()
    assert student.teacher.has_own_frontend
    data = batch()
    with torch.no_grad():
        for parameter in student.frontend.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
        found = student(**data)[1]["loss_frontend_layer"]
        mine, theirs = (
            net.frontend.upstream(data["speech"], data["speech_lengths"])
            for net in (student, student.teacher.model)
        )
    errors = []
    for a, b, lengths in zip(mine[0], theirs[0], theirs[1], strict=True):
        frames = torch.arange(a.size(1)) < lengths[:, None]
        frames[:, 49:] = False  # s3prl repeats the last one of the longest
        errors.append((a - b)[frames].square().mean())
    assert float(found) == pytest.approx(float(sum(errors[1:])) / 2, rel=1e-4)
    assert found > 1e-3


def test_a_front_end_that_is_not_pruned_runs_once(tmp_path):
    student = student_of(tmp_path, publish(tmp_path), units=[])
    assert not student.teacher.has_own_frontend
    calls = []
    student.teacher.model.frontend.register_forward_hook(lambda *_: calls.append(1))
    stats = student(**batch())[1]
    assert "loss_layer" in stats
    assert "loss_frontend_layer" not in stats
    assert not calls


def make_experiment(folder: Path, options: dict) -> None:
    """Train a stock model of ESPnet's for an epoch, on noise, with frozen front end."""
    train_on_noise(
        folder,
        input_size=None,
        frontend="s3prl",
        frontend_conf=options,
        **PREENCODER,
        encoder="conformer",
        model_conf={"ctc_weight": 0.5, "extract_feats_in_collect_stats": False},
        freeze_param=["frontend.upstream"],
    )


def follow(printed: str, fitted: list[str]) -> None:
    """Run the commands that `adopt` has printed, with further options for the cut."""
    for command in printed.split("Next:\n")[1].splitlines():
        words = shlex.split(command)
        if words[0] == "espnet-l0prune":
            assert main([*words[1:], *fitted]) == 0
        else:
            ASRTask.main(cmd=words[3:])


def elsewhere(home: Path, script: str, *words: object) -> str:
    """Run a script where nothing was downloaded or cached, and return what it prints."""
    home.mkdir()
    clean = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        env={**clean, "HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "large", "scope"),
    [
        ("hubert", False, "model"),
        ("wavlm", True, "frontend"),
        ("wav2vec2", True, "model"),
    ],
)
def test_from_a_stock_experiment_to_a_text(kind, large, scope, tmp_path, capsys):
    options = publish(tmp_path, kind, large)
    make_experiment(tmp_path, options)
    dense, out, archive = (tmp_path / name for name in ("dense", "l0", "pruned.zip"))
    words = ["adopt", str(dense), "--out", str(out), "--scope", scope]
    words += ["--params", "0.4", "--macs", "0.4"]
    assert main([*words, "--epochs", "8", "--finetune_epochs", "1"]) == 0
    follow(capsys.readouterr().out, ["--reconstruct", "8"] if kind == "hubert" else [])
    cut = yaml.safe_load((out / "cut/cut.json").read_text())
    assert all(0.4 <= share < 0.6 for share in cut["sparsity"].values())
    assert cut["difference"]["float64"] <= 1e-10
    fitting = cut["reconstruction"]
    assert (fitting is not None) == (kind == "hubert")
    model, _ = load_experiment(out / "finetuned", "valid.acc.ave.pth")
    assert not any(site.gates for site in sites_of(model))
    axes = structure_figure(units_left(model.frontend, "frontend"), "frontend").axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["front end", "block 1", "block 2"]
    finetuned = str(out / "finetuned")
    assert main(["inspect", finetuned]) == 0
    assert "frontend.encoder.layers.0.self_attn" in capsys.readouterr().out
    assert main(["export", "stock", finetuned, "--out", str(archive)]) == 1
    assert "need not have its published sizes" in capsys.readouterr().err
    graphs = tmp_path / "onnx.zip"
    assert main(["export", "onnx", finetuned, "--out", str(graphs)]) == 0
    assert main(["export", "plugin", finetuned, "--out", str(archive)]) == 0

    # where the published model is not, nor anything that was cached
    Path(options["frontend_conf"]["path_or_url"]).unlink()
    onnx, _ = load_model(*unpack_model(graphs, tmp_path / "graphs"))
    speech, lengths = torch.randn(1, 8000), torch.tensor([8000])
    with torch.no_grad():
        ours, graph = (net.encode(speech, lengths)[0] for net in (model, onnx.eval()))
    assert torch.allclose(ours, graph, rtol=1e-3, atol=1e-4)
    files = unpack_model(archive, tmp_path / "unpacked")
    args = read_config(files[0])
    assert str(tmp_path) not in str(args.frontend_conf["upstream_config"])
    again, _ = load_model(*files)
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    wave = tmp_path / "wave.npy"
    np.save(wave, 0.1 * np.random.default_rng(1).standard_normal(8000).astype("float32"))
    assert "decoded" in elsewhere(tmp_path / "home", DECODE, *files, wave)


@pytest.mark.slow
def test_real_speech_to_the_same_texts_in_another_home(mini_an4, tmp_path, capsys):
    """What was packed says of each recording what the fine-tuned experiment says."""
    options, utterances = publish(tmp_path), read_mini_an4(mini_an4)
    letters = sorted({c for _, text in utterances.values() for c in text} - {" "})
    train_dense(
        tmp_path,
        **write_audio(tmp_path, utterances),
        token_list=["<blank>", "<unk>", *letters, "<space>", "<sos/eos>"],
        input_size=None,
        frontend="s3prl",
        frontend_conf=options,
        **PREENCODER,
        encoder="conformer",
        model_conf={"ctc_weight": 0.5, "extract_feats_in_collect_stats": False},
        optim_conf={"lr": 0.005},
        batch_size=2,
        max_epoch=40,
    )
    dense, out, archive = (tmp_path / name for name in ("dense", "l0", "pruned.zip"))
    words = ["adopt", str(dense), "--out", str(out), "--scope", "model"]
    words += ["--params", "0.3", "--epochs", "12", "--finetune_epochs", "2"]
    assert main(words) == 0
    follow(capsys.readouterr().out, [])
    cut = yaml.safe_load((out / "cut/cut.json").read_text())
    assert 0.3 <= cut["sparsity"]["params"] < 0.4
    assert cut["difference"]["float64"] <= 1e-10
    assert main(["export", "plugin", str(out / "finetuned"), "--out", str(archive)]) == 0

    config, weights = out / "finetuned/config.yaml", out / "finetuned/valid.acc.ave.pth"
    speech2text = Speech2Text(str(config), str(weights), beam_size=2, ctc_weight=0.5)
    said, texts = [], set()
    for wave, _ in utterances.values():
        text, *_, hypothesis = speech2text(wave)[0]
        said.append(f"decoded {text}: {float(hypothesis.score):.4f}")
        texts.add(text)
    assert len(texts) > 3
    for folder in (dense, out):  # nor the experiments, nor what was published
        folder.rename(tmp_path / f"{folder.name}-elsewhere")
    Path(options["frontend_conf"]["path_or_url"]).unlink()
    waves = [tmp_path / f"{name}.wav" for name in utterances]
    printed = elsewhere(tmp_path / "home", DECODE_ALL, archive, *waves)
    assert [line for line in printed.splitlines() if "decoded" in line] == said

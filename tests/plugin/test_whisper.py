"""Whisper's networks are ESPnet's to the bit, and go the whole way."""

import shlex

import pytest
import torch
import whisper
import yaml
from espnet2.asr.decoder.whisper_decoder import OpenAIWhisperDecoder
from espnet2.asr.encoder.whisper_encoder import OpenAIWhisperEncoder
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from espnet_model_zoo.downloader import ModelDownloader

from espnet_l0prune.cli import main
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.deploy.verify import decode
from espnet_l0prune.networks.whisper import encode_waveform
from espnet_l0prune.plugin.counting import make_budget, sites_of
from espnet_l0prune.plugin.experiment import load_experiment
from espnet_l0prune.plugin.network import L0WhisperDecoder, L0WhisperEncoder
from espnet_l0prune.testing.models import TOKENS
from espnet_l0prune.testing.runs import train_on_noise
from espnet_l0prune.testing.whisper import DIMENSIONS, NAME, SIZES, publish, save_whisper

SPECAUG = {
    "use_specaug": True,
    "specaug_conf": {"apply_time_warp": False, "time_mask_width_range": [0, 9]},
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    yield publish(folder)
    del whisper._MODELS[NAME]


def both(published, **conf):
    """ESPnet's networks and ours, whose gates are new and so all 1."""
    vocabulary = len(TOKENS)
    options = {"dropout_rate": 0.1, **published}
    torch.manual_seed(0)
    stock = (
        OpenAIWhisperEncoder(1, **options, **conf),
        OpenAIWhisperDecoder(vocabulary, SIZES["state"], **options),
    )
    torch.manual_seed(0)
    ours = (
        L0WhisperEncoder(1, **options, **conf, units="all"),
        L0WhisperDecoder(vocabulary, SIZES["state"], **options, units="all"),
    )
    return stock, ours


def compute(encoder, decoder) -> dict[str, torch.Tensor]:
    """Outputs and gradients of a step of a training, dropout and SpecAugment included."""
    torch.manual_seed(1)
    speech, lengths = torch.randn(3, 8000), torch.tensor([8000, 6000, 3000])
    tokens = torch.randint(0, len(TOKENS), (3, 6))
    out, valid, _ = encoder(speech, lengths)
    scores, _ = decoder(out, valid, tokens, torch.tensor([6, 6, 4]))
    (out.square().mean() + scores.square().mean()).backward()
    parts = [("encoder", encoder), ("decoder", decoder)]
    found = {
        f"{part}.{name}": parameter.grad
        for part, network in parts
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    return {"out": out, "scores": scores, "valid": valid, **found}


@pytest.mark.parametrize("conf", [{}, SPECAUG, {"do_pad_trim": True}])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_open_gates_are_espnet_to_the_bit(conf, dtype, training, published):
    stock, ours = both(published, **conf)
    for network in (*stock, *ours):
        network.train(training)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        expected, found = compute(*stock), compute(*ours)
    assert expected.keys() <= found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


@torch.no_grad()
def test_what_is_verified_is_what_whisper_computes(published):
    encoder, decoder = (network.eval() for network in both(published)[1])
    speech, lengths = torch.randn(2, 8000), torch.tensor([8000, 5000])
    out, valid, _ = encoder(speech, lengths)
    found, frames = encode_waveform(encoder, speech, lengths)
    assert torch.allclose(found, out, rtol=1e-4, atol=1e-5)
    assert torch.equal(frames, valid)
    tokens, counts = torch.tensor([[3, 1, 4], [1, 5, 9]]), torch.tensor([3, 3])
    scores = decode(decoder, out, valid, tokens, counts)
    expected, _ = decoder(out, valid, tokens, counts)
    assert torch.allclose(scores, expected, rtol=1e-4, atol=1e-4)


def test_what_was_published_is_not_needed_to_build_it(published):
    _, (encoder, decoder) = both(published)
    for network, sizes in ((encoder, [1]), (decoder, [len(TOKENS), SIZES["state"]])):
        conf = network.portable_conf()
        assert conf["dimensions"] == DIMENSIONS
        again = type(network)(*sizes, whisper_model="large", **conf, units="all")
        again.load_state_dict(network.state_dict())
        assert again.structure() == network.structure()


def test_dimensions_that_whisper_does_not_know():
    with pytest.raises(
        ValueError, match=r"encoder_conf: dimensions is .*'n_mels'.* n_vocab"
    ):
        L0WhisperEncoder(1, whisper_model="tiny", dimensions={"n_mels": 80})


def test_options_are_checked_as_those_of_other_networks(published):
    with pytest.raises(ValueError, match="uniform is 'yes'; expected a val"):
        L0WhisperEncoder(1, **published, uniform="yes")
    for wrong in ("80", 0, 8.0):
        sizes = {**DIMENSIONS, "n_mels": wrong}
        with pytest.raises(ValueError, match="expected a number above 0 for each of n_m"):
            L0WhisperEncoder(1, whisper_model="tiny", dimensions=sizes)


def test_a_published_model_that_cannot_be_had(tmp_path):
    message = "encoder_conf: whisper_model is tiny.en, whose file is not in download_dir"
    with pytest.raises(ValueError, match=message):
        L0WhisperEncoder(1, whisper_model="tiny.en", download_dir=str(tmp_path))


def test_linear_attention_is_refused(published):
    with pytest.raises(ValueError, match="random_features is 8, but attn is a"):
        L0WhisperEncoder(1, **published, random_features=8)


def test_more_tokens_than_the_decoder_has_positions(tmp_path, published):
    save_whisper(tmp_path / "exp", published)
    net, _ = load_experiment(tmp_path / "exp", "model.pth")
    most = DIMENSIONS["n_text_ctx"]
    make_budget(net, Goal(scope="model", seconds=1, tokens=most))
    with pytest.raises(
        ValueError, match=f"tokens is {most + 1}; expected at most {most}"
    ):
        make_budget(net, Goal(scope="model", seconds=1, tokens=most + 1))


def make_experiment(folder, published) -> None:
    """Train a stock Whisper of ESPnet's for an epoch, on noise."""
    train_on_noise(
        folder,
        input_size=1,
        encoder="whisper",
        encoder_conf=published,
        decoder="whisper",
        decoder_conf=published,
        model_conf={"ctc_weight": 0.0},
    )


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["encoder", "model"])
def test_from_a_stock_experiment_to_a_text(
    scope, published, tmp_path, capsys, monkeypatch
):
    make_experiment(tmp_path, published)
    dense, out, archive = (tmp_path / name for name in ("dense", "l0", "pruned.zip"))
    words = [str(dense), "--out", str(out), "--params", "0.3", "--scope", scope]
    assert main(["adopt", *words, "--epochs", "6", "--finetune_epochs", "1"]) == 0
    for command in capsys.readouterr().out.split("Next:\n")[1].splitlines():
        words = shlex.split(command)
        if words[0] == "espnet-l0prune":
            assert main(words[1:]) == 0
        else:
            ASRTask.main(cmd=words[3:])
    cut = yaml.safe_load((out / "cut/cut.json").read_text())
    assert 0.3 <= cut["sparsity"]["params"] < 0.45
    model, _ = load_experiment(out / "finetuned", "valid.acc.ave.pth")
    assert not any(site.gates for site in sites_of(model))
    finetuned = str(out / "finetuned")
    for form, reason in (
        ("stock", "need not have its published sizes"),
        ("onnx", "computes its features"),
    ):
        assert main(["export", form, finetuned, "--out", str(archive)]) == 1
        assert reason in capsys.readouterr().err
    assert main(["export", "plugin", finetuned, "--out", str(archive)]) == 0

    speech, options = torch.randn(8000), {"beam_size": 2, "ctc_weight": 0.0}
    speech2text = Speech2Text(
        out / "finetuned/config.yaml", out / "finetuned/valid.acc.ave.pth", **options
    )
    monkeypatch.setitem(whisper._MODELS, NAME, "https://nowhere/0/absent.pt")
    files = ModelDownloader(tmp_path / "cache").download_and_unpack(str(archive))
    again = Speech2Text.from_pretrained(**files, **options)
    (text, *_, one), (same, *_, two) = again(speech)[0], speech2text(speech)[0]
    assert text == same
    assert float(one.score) == pytest.approx(float(two.score), rel=1e-5)

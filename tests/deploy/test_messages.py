"""What our commands say of what they cannot use, where no other test provokes it."""

import copy
import re
import sys

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask
from PIL import Image

from espnet_l0prune.cli import main
from espnet_l0prune.deploy.exports import find_form, onnx
from espnet_l0prune.deploy.exports.stock import to_stock
from espnet_l0prune.deploy.verify import difference_of, outputs
from espnet_l0prune.networks.espnet_modules import PositionwiseFeedForward, _find
from espnet_l0prune.plugin.experiment import load_weights
from espnet_l0prune.plugin.onnx import OnnxEncoder
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import arguments, model, whole
from tests.deploy.test_export import TINY
from tests.disks import largest_file

SMALL = {"units": [], "output_size": 8, "num_blocks": 1}
CTC = {
    "encoder_conf": {**TINY, "units": []},
    "decoder": None,
    "model_conf": {"ctc_weight": 1.0},
}


@pytest.fixture
def refused(capsys):
    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == 1, words
        return capsys.readouterr().err

    return run


def test_what_is_no_experiment(tmp_path, refused):
    save_experiment(tmp_path / "exp")
    adopt = "adopt", tmp_path / "exp", "--out", tmp_path / "l0"
    for name in ("valid.acc.ave.pth", "valid.loss.ave.pth"):
        (tmp_path / "exp" / name).touch()
    assert "valid.loss.ave.pth; expected one of them in --check" in refused(*adopt)
    for text, message in (
        ("[]", "it holds a list"),
        ("a: 1", "is none of an ESPnet ASR experiment: it has no token_list"),
    ):
        (tmp_path / "exp/config.yaml").write_text(text)
        assert message in refused("inspect", tmp_path / "exp")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="it holds a list"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "list.pth")


def test_an_encoder_that_we_do_not_know(tmp_path, refused):
    args = arguments(encoder="rnn", model="espnet", optim="adam")
    args.encoder_conf = {"hidden_size": 8, "output_size": 8, "num_layers": 1}
    args.decoder, args.decoder_conf = "rnn", {"hidden_size": 8, "num_layers": 1}
    net = ASRTask.build_model(copy.deepcopy(args))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(net.state_dict(), tmp_path / "model.pth")
    assert "encoder: rnn; expected l0_conformer, l0" in refused("inspect", tmp_path)


def test_models_that_cannot_be_packed(tmp_path, refused, monkeypatch):
    save_experiment(tmp_path / "gated", encoder="l0_conformer", model="l0_distill")
    save_experiment(tmp_path / "dense", encoder_conf=SMALL, encoder="l0_conformer")
    out = "--out", tmp_path / "m.zip"
    assert "has gates; expected a" in refused(
        "export", "plugin", tmp_path / "gated", *out
    )
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = refused("export", "onnx", tmp_path / "dense", *out)
    assert "ONNX needs onnxscript: pip install onnxscript" in message
    images = tmp_path / "dense/images"
    images.mkdir()
    for name in ("acc.png", "loss.png"):
        Image.effect_noise((500, 500), 99).save(images / name)
    with largest_file(400_000):  # each of them is smaller, and the zip is not
        message = refused("export", "plugin", tmp_path / "dense", *out)
    assert re.search("ESPnet's packing failed: .*File too large", message)
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.slow
def test_graphs_that_cannot_be_written_or_are_of_another_model(tmp_path):
    net = model(**CTC).eval()
    form = find_form("onnx").pack(net, arguments(), tmp_path, int8=False)
    assert "the largest difference of log-probabilities is" in form.verify(net)
    with torch.no_grad():
        net.ctc.ctc_lo.bias[0] += 1
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.ctc.ctc_lo.bias[0] += 1
    with pytest.raises(ValueError, match=r"is not the experiment's: .* Export a plugin"):
        form.verify(other)

    class Branch(torch.nn.Module):
        def forward(self, x, *rest):
            return x if x.sum() > 0 else -x

    net.encoder.encoders[0].feed_forward = Branch()
    with pytest.raises(ValueError, match=r"torch cannot write encoder\.onnx of"):
        onnx.write_onnx(net, tmp_path)


@pytest.mark.slow
def test_an_int8_that_is_far_from_the_float(tmp_path):
    """A large weight that is never used leaves no step of int8 to the others."""
    net = model(**CTC).eval()
    with torch.no_grad():
        net.ctc.ctc_lo.weight *= 5
        for module in net.encoder.modules():
            if isinstance(module, PositionwiseFeedForward):
                module.w_1.weight[0] = module.w_1.bias[0] = 0
                module.w_2.weight *= 10
                module.w_2.weight[:, 0] = 10_000
    form = find_form("onnx").pack(net, arguments(), tmp_path, int8=True)
    packed = copy.deepcopy(net)
    packed.encoder = OnnxEncoder(20, str(tmp_path / "encoder.onnx"))
    with pytest.raises(ValueError, match=r"mean divergence, .* it without --int8"):
        form.verify(packed)


def test_what_plain_espnet_cannot_build():
    gone = {"encoders.0": {"blocks": 0}}
    gone = whole(model().encoder, gone)
    conf = {"structure": gone, "units": [], "interctc_layer_idx": [1]}
    args = arguments(encoder_conf=conf, model_conf={"interctc_weight": 0.3})
    with pytest.raises(ValueError, match="counts them for intermediate CTC"):
        to_stock(ASRTask.build_model(copy.deepcopy(args)), args)
    args = arguments(encoder_conf={"units": []})
    net = ASRTask.build_model(copy.deepcopy(args))
    args.ctc_conf = {"ctc_type": "brctc"}  # which needs k2
    with pytest.raises(ValueError, match="plain ESPnet cannot build this model here"):
        to_stock(net, args)
    with pytest.raises(ImportError, match=r"ESPnet has no none.Such in espnet.nets or"):
        _find("none", "Such")


def test_models_of_different_sizes_are_no_two_forms_of_one():
    one, two = (model(encoder_conf={"output_size": n}) for n in (8, 16))
    with pytest.raises(ValueError, match="expected two forms of one model"):
        difference_of(outputs(one.eval()), outputs(two.eval()))

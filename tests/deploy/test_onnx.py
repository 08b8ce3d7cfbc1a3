"""Graphs for onnxruntime compute what torch does, and hold nothing else."""

import argparse
import copy
import os
import shutil
import sys

import pytest
import safetensors.torch
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.deploy.exports.divergence import distance, divergence, furthest
from espnet_l0prune.deploy.exports.graphs import DecoderGraph, shortest
from espnet_l0prune.deploy.exports.onnx import (
    FLOAT_TOLERANCE,
    INT8_TOLERANCE,
    check,
    quantize,
    write_onnx,
)
from espnet_l0prune.plugin.building import note_input_
from espnet_l0prune.plugin.onnx import OnnxDecoder, OnnxEncoder, OnnxGraph
from espnet_l0prune.testing.models import arguments, disturb_
from tests.deploy.test_stock import NETWORKS, cut_model

RAW = {"input_size": None, "frontend": "default", "normalize": "utterance_mvn"}


def running(model, folder):
    """The model with its networks run by onnxruntime."""
    torch.manual_seed(0)
    other = ASRTask.build_model(arguments(encoder="conformer", model="espnet")).eval()
    size = model.encoder.input_size
    other.encoder = OnnxEncoder(size, str(folder / "encoder.onnx"))
    other.ctc, other.decoder = model.ctc, None
    if model.decoder is not None:
        width, file = model.encoder.output_size(), folder / "decoder.onnx"
        other.decoder = OnnxDecoder(model.vocab_size, width, str(file))
    return other


# of the others, test_speakers.py
WITH_GRAPHS = [name for name in NETWORKS if name != "transformer_multispkr"]
WHOLE = "transformer"  # its decoder is cut too; of the others, the encoder is enough


@pytest.fixture(scope="module")
def written(request, tmp_path_factory):
    """A model of random structure, with every kind of unit cut, and its graphs."""
    model, _ = cut_model(request.param, 2, without=(), blocks=2)
    if request.param != WHOLE:
        model.ctc = model.decoder = None
    folder = tmp_path_factory.mktemp(request.param)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert len(write_onnx(model, folder)) == (3 if request.param == WHOLE else 1)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in state.items())
    return model, folder


@pytest.mark.slow
@pytest.mark.parametrize("written", WITH_GRAPHS, indirect=True)
def test_every_structure_and_length(written, tmp_path):
    model, folder = written
    other = running(model, folder)
    assert furthest(model, other, distance) <= FLOAT_TOLERANCE

    feats = torch.randn(3, 900, model.encoder.input_size)  # longer than what was traced
    lengths = torch.tensor([900, 701, 40])
    with torch.no_grad():
        together, left, _ = other.encoder(feats, lengths)
        for i, n in enumerate(lengths.tolist()):
            alone, length, _ = model.encoder(feats[i : i + 1, :n], lengths[i : i + 1])
            assert left[i] == length
            torch.testing.assert_close(
                together[i, :length], alone[0], atol=1e-4, rtol=1e-4
            )
    for file in folder.iterdir():
        assert b".py" not in file.read_bytes(), "a path, or a line of source"

    for file in {"encoder.onnx", "decoder.onnx"} & {*os.listdir(folder)}:
        shutil.copy(folder / file, tmp_path)
        quantize(tmp_path / file)
    other = running(model, tmp_path)
    assert furthest(model, other, distance) > FLOAT_TOLERANCE
    assert furthest(model, other, divergence) <= INT8_TOLERANCE


SELF = {"selfattention_layer_type": "selfattn", "use_flash_attn": False}
ATTENTION = {
    "latest": {"rel_pos_type": "latest"},
    "legacy": {"rel_pos_type": "legacy"},
    "absolute": {**SELF, "pos_enc_layer_type": "abs_pos"},
    "scaled": {**SELF, "pos_enc_layer_type": "scaled_abs_pos"},
    "convolution": {**SELF, "pos_enc_layer_type": "conv"},
    "linear": {**SELF, "pos_enc_layer_type": "abs_pos", "random_features": 8},
}
KINDS = [  # cut networks have "latest"; "absolute" is in "linear" and "scaled"
    *(("conformer", name) for name in ATTENTION if name not in ("latest", "absolute")),
    ("transformer", "convolution"),
]


def shaken(kind: str, attention: str) -> torch.nn.Module:
    """An encoder whose every weight is away from where it starts: of a fresh one, some
    biases are 0, and hide what they are multiplied by."""
    conf = {"output_size": 16, "attention_heads": 2, "num_blocks": 1, "units": []}
    if kind == "conformer":
        conf |= {"use_cnn_module": False}  # it knows nothing of positions
    conf |= ATTENTION[attention]
    if kind == "transformer":
        conf |= {"input_layer": "linear"}  # all others ignore where positions come from
        conf.pop("selfattention_layer_type")
    args = arguments(encoder=f"l0_{kind}")
    args.encoder_conf = conf
    torch.manual_seed(0)
    model = ASRTask.build_model(args).eval()
    note_input_(model, args)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.ctc = model.decoder = None  # what is exported is the encoder
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "attention"), KINDS)
def test_every_position_and_attention(kind, attention, tmp_path):
    """In float, and the int8 that is made of it, for the shortest input and long ones."""
    model, file = shaken(kind, attention), tmp_path / "encoder.onnx"
    write_onnx(model, tmp_path)

    def apart(measure) -> float:
        encoder = OnnxEncoder(20, str(file), shortest(model.encoder))
        found = []
        for frames in (7, 8, 64, 1203):
            feats, lengths = torch.randn(1, frames, 20), torch.tensor([frames])
            with torch.no_grad():
                one, two = (e(feats, lengths)[0] for e in (model.encoder, encoder))
            found.append(measure(one, two, False))
        return max(found)

    assert apart(distance) <= FLOAT_TOLERANCE
    quantize(file)
    assert apart(distance) > FLOAT_TOLERANCE
    assert apart(divergence) <= INT8_TOLERANCE


@pytest.mark.slow
def test_speech_and_intermediate_ctc(tmp_path):
    conf = {"interctc_layer_idx": [1], "interctc_use_conditioning": True}
    conf |= {**ATTENTION["absolute"], "macaron_style": False, "use_cnn_module": False}
    args = arguments(
        **RAW,
        encoder="conformer",
        encoder_conf=conf,
        decoder=None,
        model="espnet",
        model_conf={"ctc_weight": 1.0, "interctc_weight": 0.3},
    )
    torch.manual_seed(0)
    model = ASRTask.build_model(args).eval()
    note_input_(model, args)
    disturb_(model.encoder)
    assert len(write_onnx(model, tmp_path)) == 3
    speech = 0.1 * torch.randn(1, 40_123)
    frontend = OnnxGraph(str(tmp_path / "frontend.onnx"))
    encoder = OnnxGraph(str(tmp_path / "encoder.onnx"))
    (feats,) = frontend(speech=speech)
    (found,) = encoder(feats=feats)
    with torch.no_grad():
        expected, _ = model.encode(speech, torch.tensor([speech.size(1)]))
    torch.testing.assert_close(found, expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("written", [WHOLE], indirect=True)
def test_a_graph_that_computes_something_else_is_refused(written):
    model, folder = written
    other = copy.deepcopy(model)
    disturb_(other.decoder, seed=1)
    with pytest.raises(ValueError, match=r"decoder.onnx .* differs by .* expected at"):
        check(DecoderGraph(other), folder / "decoder.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("written", [WHOLE], indirect=True)
def test_training_and_a_missing_runtime_say_so(written, monkeypatch):
    model, folder = written
    width = model.encoder.output_size()
    decoder = OnnxDecoder(model.vocab_size, width, str(folder / "decoder.onnx"))
    with pytest.raises(NotImplementedError, match="cannot be trained"):
        decoder(torch.zeros(1, 2, width), None, None, None)
    again = copy.deepcopy(decoder)  # as torch's dynamic quantization does
    assert again.graph.shapes == decoder.graph.shapes
    with pytest.raises(ValueError, match=r"onnxruntime cannot load .*none.onnx"):
        OnnxGraph(str(folder / "none.onnx"))
    with pytest.raises(ValueError, match=r"cannot run .*; expected \{"):
        OnnxGraph(str(folder / "encoder.onnx"))(feats=torch.zeros(1, 2, 20))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install onnxruntime$"):
        OnnxGraph(str(folder / "decoder.onnx"))


def test_a_cut_model_is_plain_tensors(tmp_path):
    model, args = cut_model("conformer", 3, without=())
    assert isinstance(args, argparse.Namespace)
    state = model.state_dict()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    again = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], v) for k, v in state.items())

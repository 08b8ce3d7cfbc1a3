"""Graphs that nobody here made: one message each."""

import os

import numpy as np
import pytest
import torch

from espnet_l0prune.networks.espnet_modules import TooShortUttError
from espnet_l0prune.plugin.onnx import OnnxDecoder, OnnxEncoder, OnnxGraph

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SIZE, VOCABULARY = 20, 12


def graph(path, inputs: dict, outputs: dict, op: str = "Identity", domain: str = ""):
    """A graph that gives to each output what one input is."""
    values = [
        [onnx.helper.make_tensor_value_info(k, *v) for k, v in some.items()]
        for some in (inputs, outputs)
    ]
    nodes = [
        onnx.helper.make_node(op, [given], [found], domain=domain)
        for given, found in zip(inputs, outputs, strict=False)
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "graph", *values),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    path.write_bytes(model.SerializeToString())
    return str(path)


FLOAT, DOUBLE, INT = 1, 11, 7  # as ONNX counts types
FEATS = {"feats": (FLOAT, (1, "frames", SIZE))}
OUT = {"encoder_out": (FLOAT, (1, "frames", SIZE))}
DECODER = {
    "ys": (INT, ("batch", "length")),
    "memory": (FLOAT, ("batch", "frames", 8)),
    "cache": (FLOAT, (2, "batch", "before", 8)),
}
STEP = {
    "ys_": (INT, ("batch", "length")),
    "logp": (FLOAT, ("batch", "frames", 8)),
    "new_cache": (FLOAT, (2, "batch", "before", 8)),
}


def test_an_encoder_that_is_one(tmp_path):
    encoder = OnnxEncoder(SIZE, graph(tmp_path / "e", FEATS, OUT), shortest=7)
    feats = torch.randn(2, 9, SIZE)
    found, lengths, _ = encoder(feats, torch.tensor([9, 7]))
    torch.testing.assert_close(found[0], feats[0])
    assert lengths.tolist() == [9, 7]
    assert encoder.output_size() == SIZE
    with pytest.raises(TooShortUttError, match="has 6 frames and is too short"):
        encoder(feats, torch.tensor([9, 6]))
    with pytest.raises(ValueError, match="shortest is '7'; expected a number of frames"):
        OnnxEncoder(SIZE, str(tmp_path / "e"), shortest="7")


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"x": FEATS["feats"]}, OUT),
        (FEATS, {"y": OUT["encoder_out"]}),
        (FEATS | {"more": (FLOAT, (1,))}, OUT),
        ({"feats": (DOUBLE, (1, "frames", SIZE))}, {"encoder_out": (DOUBLE, (1, 1, 1))}),
        ({"feats": (FLOAT, (1, "frames", SIZE, 1))}, OUT),
        ({"feats": (FLOAT, (1, "frames", SIZE + 1))}, OUT),
        ({"feats": (FLOAT, ("frames", SIZE))}, {"encoder_out": (FLOAT, (1, SIZE))}),
        (
            {"feats": (FLOAT, (1, "frames", "size"))},
            {"encoder_out": (FLOAT, (1, 1, "n"))},
        ),
    ],
)
def test_an_encoder_that_is_another_graph(inputs, outputs, tmp_path):
    file = graph(tmp_path / "e.onnx", inputs, outputs)
    with pytest.raises(ValueError, match=r"is another graph: it has .*; expected feats"):
        OnnxEncoder(SIZE, file)


def test_a_decoder_of_another_model(tmp_path):
    file = graph(tmp_path / "d.onnx", DECODER, STEP)
    with pytest.raises(ValueError, match=r"another graph: .* to logp \(any, 12\), new_"):
        OnnxDecoder(VOCABULARY, 8, file)


def test_what_is_no_graph(tmp_path):
    file = tmp_path / "e.onnx"
    graph(file, FEATS, OUT)
    whole = file.read_bytes()
    graph(file, FEATS, OUT, op="Run", domain="of.somebody")
    custom = file.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"a text\n", custom):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"onnxruntime cannot load .*e\.onnx") as e:
            OnnxEncoder(SIZE, str(file))
        assert "\n" not in str(e.value)
    file.unlink()
    os.mkfifo(file)
    for name in (file, tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="onnxruntime cannot load"):
            OnnxGraph(str(name))


@pytest.mark.parametrize("location", ["../secret", "{}/secret", "link", "none"])
def test_weights_that_lie_elsewhere(location, tmp_path):
    """onnxruntime opens them in the graph's own folder only."""
    (tmp_path / "secret").write_bytes(np.ones(SIZE, "f").tobytes())
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    file = folder / "encoder.onnx"
    graph(file, FEATS | {"w": (FLOAT, (SIZE,))}, OUT)
    model = onnx.load(file)
    model.graph.node[0].CopyFrom(
        onnx.helper.make_node("Add", ["feats", "w"], ["encoder_out"])
    )
    weights = onnx.numpy_helper.from_array(np.ones(SIZE, "f"), "w")
    onnx.external_data_helper.set_external_data(
        weights, location.format(tmp_path), 0, 4 * SIZE
    )
    weights.ClearField("raw_data")
    model.graph.initializer.append(weights)
    del model.graph.input[1]

    file.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"onnxruntime cannot load .* External data"):
        OnnxEncoder(SIZE, str(file))
    (folder / "own").write_bytes((tmp_path / "secret").read_bytes())
    model.graph.initializer[0].external_data[0].value = "own"
    file.write_bytes(model.SerializeToString())
    feats = torch.zeros(1, 3, SIZE)
    assert OnnxEncoder(SIZE, str(file))(feats, torch.tensor([3]))[0].eq(1).all()

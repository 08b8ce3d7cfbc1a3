"""Graphs are joined: one after another, or one for each utterance of a batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_l0prune.deploy.exports.onnx import data_of

if TYPE_CHECKING:
    from onnx import ModelProto

# The nodes that compute {logp} of {feats} are put in between
BATCHED = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
batch (float[N,T,{features}] x, int64[N] x_length)
    => (float[N,frames,{tokens}] log_probs, int64[N] log_probs_length)
<int64[1] first = {{0}}, int64[1] middle = {{1}}, int64[3] empty = {{0, 0, {tokens}}}>
{{
    number = Shape <start = 0, end = 1> (x)
    repeats = Squeeze (number, first)
    true = Constant <value = bool {{1}}> ()
    nothing = ConstantOfShape (empty)
    log_probs, log_probs_length = Loop (repeats, true, nothing) <body = utterance (
        int64 i, bool go_on, float[done,longest_before,{tokens}] before
    ) => (bool still, float[done_now,longest,{tokens}] after, int64 length) {{
        still = Identity (go_on)
        padded = Gather <axis = 0> (x, i)
        valid = Gather <axis = 0> (x_length, i)
        end = Unsqueeze (valid, first)
        frames_in = Slice (padded, first, end, first)
        {feats} = Unsqueeze (frames_in, first)
        logp = Identity ({logp})
        count = Shape <start = 1, end = 2> (logp)
        count_before = Shape <start = 1, end = 2> (before)
        most = Max (count, count_before)
        missing = Sub (most, count)
        missing_before = Sub (most, count_before)
        pads = Concat <axis = 0> (first, missing)
        pads_before = Concat <axis = 0> (first, missing_before)
        long = Pad (logp, pads, , middle)
        long_before = Pad (before, pads_before, , middle)
        after = Concat <axis = 0> (long_before, long)
        length = Squeeze (count, first)
    }}>
}}
"""


def batch_(file: Path, metadata: Mapping[str, str]) -> None:
    """Replace the graph of one utterance by that of a batch, in the same place.

    Each utterance is taken out of the batch and computed by itself, so that neither
    padding nor its neighbours change anything.

    Args:
        file: a graph that maps `feats` (1, T, features) to `logp` (1, frames, tokens); it
            will map `x` (N, T, features) and the numbers of valid frames `x_length` (N,)
            to `log_probs` (N, frames, tokens) and `log_probs_length` (N,)
        metadata: what else is written into the file, by name
    """
    import onnx

    one = onnx.compose.add_prefix(onnx.load(file), "one_")
    features, tokens = (
        value.type.tensor_type.shape.dim[2].dim_value
        for value in (one.graph.input[0], one.graph.output[0])
    )
    opset = next(x.version for x in one.opset_import if not x.domain)
    batched = onnx.parser.parse_model(
        BATCHED.format(
            ir_version=one.ir_version,
            opset=opset,
            features=features,
            tokens=tokens,
            feats=one.graph.input[0].name,
            logp=one.graph.output[0].name,
        )
    )
    for other in one.opset_import:
        if other.domain:
            batched.opset_import.append(other)
    batched.functions.extend(one.functions)
    batched.graph.initializer.extend(one.graph.initializer)
    loop = next(node for node in batched.graph.node if node.op_type == "Loop")
    body = [*loop.attribute[0].g.node]
    place = next(i for i, n in enumerate(body) if n.input[0] == one.graph.output[0].name)
    del loop.attribute[0].g.node[:]
    loop.attribute[0].g.node.extend([*body[:place], *one.graph.node, *body[place:]])
    onnx.helper.set_model_props(batched, dict(metadata))
    _save(batched, file)


def put_before_(front: Path, file: Path) -> None:
    """Replace a graph by one that begins with another, in the same place.

    Args:
        front: a graph whose only output is the only input of the other
        file: the other graph
    """
    import onnx

    first, second = onnx.load(front), onnx.load(file)
    second = onnx.compose.add_prefix(second, "then_", rename_outputs=False)
    between = first.graph.output[0].name, second.graph.input[0].name
    _save(onnx.compose.merge_models(first, second, io_map=[between]), file)


def _save(model: "ModelProto", file: Path) -> None:
    """Write a graph in place of another, with its weights in the same place."""
    import onnx

    data = data_of(file)
    large = data.exists()
    data.unlink(missing_ok=True)
    onnx.save(model, file, save_as_external_data=large, location=data.name)

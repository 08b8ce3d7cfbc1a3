"""The ONNX form holds a recognizer as graphs for onnxruntime."""

import argparse
import contextlib
import copy
import importlib
import importlib.util
import io
import logging
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from espnet_l0prune.deploy.card import PLUGIN_PACKAGES
from espnet_l0prune.deploy.exports.divergence import (
    OTHER_FRAMES,
    distance,
    divergence,
    furthest,
)
from espnet_l0prune.deploy.exports.form import ExportForm, Packed
from espnet_l0prune.deploy.exports.graphs import (
    FRAMES,
    CTCGraph,
    DecoderGraph,
    EncoderGraph,
    FrontendGraph,
    Graph,
    shortest,
)
from espnet_l0prune.networks.espnet_modules import (
    BaseTransformerDecoder,
    DefaultFrontend,
    PositionalEncoding,
    RelPositionalEncoding,
    TransducerEncoder,
    make_pad_mask,
)
from espnet_l0prune.networks.speakers import hears_speakers
from espnet_l0prune.networks.streaming import is_streaming
from espnet_l0prune.networks.whisper import reads_waveform
from espnet_l0prune.plugin.inputs import has_prompt
from espnet_l0prune.plugin.network import L0Network
from espnet_l0prune.plugin.onnx import OnnxGraph
from espnet_l0prune.plugin.weight_names import portable

FLOAT_TOLERANCE = 1e-4  # in float32: of log-probabilities, otherwise relative
# The largest `divergence` allowed in int8. A trained Conformer (6 x 96) has 0.0003, for
# real speech and for random features; random weights in 8 to 16 features, up to 0.034.
# At 0.05 nats, a probability is off by at most 0.16 on the mean (Pinsker's inequality).
INT8_TOLERANCE = 0.05
TRACEABLE = "_make_pad_mask_traceable"  # ESPnet's function
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class OnnxForm(ExportForm):
    """The `OnnxForm` holds graphs that `encoder: onnx` and `decoder: onnx` run."""

    quantizes = True
    has_rate = False

    def pack(
        self, model: nn.Module, args: argparse.Namespace, folder: Path, int8: bool
    ) -> Packed:
        """Pack the model; see `ExportForm.pack`, and `write_onnx` for further errors.

        Raises:
            ValueError: see `refuse_without_graph`
        """
        refuse_without_graph(model)
        files = {}
        for graph in write_onnx(model, folder, int8):
            files[graph.file] = graph.text
            if (data := data_of(folder / graph.file)).exists():
                files[data.name] = f"the weights of `{graph.file}`, to be left beside it"
        conf, state = dict(vars(args)), portable(model)
        for part in ("encoder", "decoder"):
            if f"{part}.onnx" in files:
                conf[part], conf[f"{part}_conf"] = "onnx", {"file": f"{part}.onnx"}
                state = {k: v for k, v in state.items() if not k.startswith(f"{part}.")}
        conf["encoder_conf"]["shortest"] = shortest(model.encoder)
        if isinstance(model.frontend, L0Network):
            conf["frontend_conf"] |= model.frontend.portable_conf()

        def verify(loaded: nn.Module) -> str:
            apart = furthest(model, loaded, divergence if int8 else distance)
            limit = INT8_TOLERANCE if int8 else FLOAT_TOLERANCE
            what = "difference of log-probabilities"
            remedy = "a plugin or a stock model"
            if int8:
                what, remedy = "mean divergence, in nats,", "it without --int8"
            if not apart <= limit:  # NaN is refused too
                raise ValueError(
                    f"the packed model is not the experiment's: the largest {what} is "
                    f"{apart:.1e}; expected at most {limit:.0e}. Nothing was written. "
                    f"Export {remedy}."
                )
            return f"the largest {what} is {apart:.1e}"

        options = argparse.Namespace(**conf)
        return Packed(state, options, verify, f" onnxruntime{PLUGIN_PACKAGES}", files)


def refuse_without_graph(model: nn.Module) -> None:
    """Raise ValueError for an encoder of which there is no graph.

    That is one that reads audio or a prompt, that answers for several speakers, that is
    streaming, or that is of asr_transducer.
    """
    if is_streaming(model.encoder):
        raise ValueError(
            f"the encoder, a {type(model.encoder).__name__}, hands context vectors "
            "from block to block, as many as the audio is long, of which torch "
            "writes no graph; expected an encoder that is not a streaming one. "
            "Export it as a plugin or a stock model."
        )
    if has_prompt(model):
        raise ValueError(
            f"the encoder, a {type(model.encoder).__name__}, reads a prompt beside "
            "the features, which no graph here does; expected an encoder that reads "
            "features alone. Export it as a plugin or a stock model."
        )
    if hears_speakers(model):
        raise ValueError(
            f"the encoder, a {type(model.encoder).__name__}, answers for several "
            "speakers, which no graph here does; expected an encoder for one. Export "
            "it as a plugin or a stock model."
        )
    if isinstance(model.encoder, TransducerEncoder):
        raise ValueError(
            f"the encoder, a {type(model.encoder).__name__}, is that of the task "
            "asr_transducer, of which no graph is written here; expected one of the "
            "task asr. Export it as a plugin or a stock model."
        )
    if reads_waveform(model.encoder):
        raise ValueError(
            f"the encoder, a {type(model.encoder).__name__}, computes its features "
            "from the audio by itself, of which torch writes no graph; expected an "
            "encoder that reads features. Export it as a plugin model."
        )


def write_onnx(model: nn.Module, folder: Path, int8: bool = False) -> list[Graph]:
    """Export what onnxruntime can run of a model.

    The files are encoder.onnx, frontend.onnx if the front end is ESPnet's default one,
    ctc.onnx if there is a CTC, and decoder.onnx if the decoder is a Transformer's; ESPnet
    runs the rest. Each graph in float is compared with torch on inputs of other lengths.

    Args:
        model: ESPnet's model, without gates and in evaluation mode
        folder: the folder to write into; the weights of graphs that are too large for one
            file lie in another of the same name with `.data` added
        int8: whether to quantize the matrix products of encoder and decoder dynamically,
            after they were compared

    Returns:
        the parts that were written

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed
        ValueError: a network that torch cannot export, or exports wrongly
    """
    require_onnx()
    kinds: list[type[Graph]] = [EncoderGraph]
    default = type(model.frontend) is DefaultFrontend and model.frontend.stft is not None
    if default and model.preencoder is None:
        kinds.append(FrontendGraph)
    if model.ctc is not None:
        kinds.append(CTCGraph)
    if isinstance(model.decoder, BaseTransformerDecoder):
        kinds.append(DecoderGraph)
    written = exportable(model)
    for kind in kinds:
        file = folder / kind.file
        with torch.random.fork_rng():
            torch.manual_seed(0)
            write_graph(kind(written), file)
            check(kind(model), file)
        if int8 and kind in (EncoderGraph, DecoderGraph):
            quantize(file)
    return [kind(model) for kind in kinds]


def require_onnx() -> None:
    """Raise ImportError if a package is missing that writes or runs graphs."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )


def exportable(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose graphs can be written, for inputs of any length."""
    copied = copy.deepcopy(model).requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, (PositionalEncoding, RelPositionalEncoding)):
            compute_positions_(module)
    return copied


def compute_positions_(module: nn.Module) -> None:
    """Let a positional encoding be computed in the graph, for inputs of any length.

    ESPnet takes it from a table of fixed length.
    """
    reverse, length = getattr(module, "reverse", False), module.pe.size(1)
    relative = isinstance(module, RelPositionalEncoding)
    exponents = torch.arange(0, module.d_model, 2, dtype=torch.float32)
    frequencies = torch.exp(exponents * -(math.log(10_000.0) / module.d_model))

    def extend(x: Tensor) -> None:
        frames = x.size(1)
        if relative:
            positions = frames - 1 - torch.arange(2 * frames - 1)
        elif reverse:  # ESPnet takes the table's first entries for any length of input
            positions = torch.sym_max(frames, length) - 1 - torch.arange(frames)
        else:
            positions = torch.arange(frames)
        angles = positions[:, None] * frequencies
        module.pe = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[None]

    module.extend_pe = extend


def write_graph(graph: Graph, file: Path) -> None:
    """Write a graph of an `exportable` model.

    Raises:
        ValueError: torch cannot export it
    """
    inputs = graph.example(FRAMES)
    try:
        with _quiet(), linear_masks():
            program = torch.onnx.export(
                graph,
                inputs,
                dynamo=True,
                verbose=False,
                input_names=[*graph.varying],
                output_names=[*graph.outputs],
                dynamic_shapes=tuple(graph.varying.values()),
            )
    except torch.onnx.OnnxExporterError as e:
        reason = str(e.__cause__ or e).splitlines()[0]
        raise ValueError(
            f"torch cannot write {file.name} of this model: {reason}. Export it as a "
            "plugin or as a stock model."
        ) from e
    whole_graph = program.model.graph
    for part in (program.model, whole_graph, *whole_graph.all_nodes()):
        part.metadata_props.clear()  # half of a small file, with local paths
    program.save(file, external_data=False)


@contextlib.contextmanager
def linear_masks() -> Iterator[None]:
    """Let ESPnet's masks of padding take memory that grows with the length.

    What ESPnet has for graphs grows with its square, and that in 8 bytes and in frames of
    features: 29 GB for 10 minutes.
    """
    module = importlib.import_module(make_pad_mask.__module__)
    inner = getattr(module, TRACEABLE)
    setattr(module, TRACEABLE, padding_mask)
    try:
        yield
    finally:
        setattr(module, TRACEABLE, inner)


def padding_mask(
    lengths: Tensor, xs: Tensor | None, length_dim: int, maxlen: int | None = None
) -> Tensor:
    """Return where there is padding; it takes what ESPnet's function of `TRACEABLE` does.

    Args:
        lengths: numbers of valid entries, (batch,)
        xs: a tensor of the mask's shape, of two or three dimensions, if any
        length_dim: the dimension of `xs` that has the entries
        maxlen: the number of entries; None for that of `xs`, or for the largest length
    """
    longest = lengths.max() if maxlen is None else maxlen
    longest = longest if xs is None else xs.size(length_dim)
    mask = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    if xs is None or xs.dim() == 2:
        return mask
    return (mask[:, :, None] if length_dim == 1 else mask[:, None]).expand_as(xs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's messages, about which no user can do anything."""
    logger = logging.getLogger("torch.onnx")
    level, printed = logger.level, io.StringIO()
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def check(graph: Graph, file: Path) -> None:
    """Compare a graph as it was written with torch, on inputs of other lengths.

    Raises:
        ValueError: they differ by more than `FLOAT_TOLERANCE`
    """
    runtime = OnnxGraph(str(file))
    for frames in (shortest(graph.model.encoder), *OTHER_FRAMES):
        inputs = graph.example(frames)
        expected = graph(*inputs)
        actual = runtime(**dict(zip(graph.varying, inputs, strict=True)))
        for name, a, b in zip(
            graph.outputs,
            expected if isinstance(expected, tuple) else [expected],
            actual,
            strict=True,
        ):
            apart = distance(a, b, absolute=name == "logp")
            if not apart <= FLOAT_TOLERANCE:
                raise ValueError(
                    f"{file.name} as torch wrote it differs by {apart:.1e} in {name} for "
                    f"{frames} frames; expected at most {FLOAT_TOLERANCE:.0e}. Export "
                    "the model as a plugin or as a stock model."
                )


def data_of(graph: Path) -> Path:
    """Return the file for the weights of a graph that is too large for one file."""
    return graph.with_name(graph.name + ".data")


def quantize(file: Path) -> None:
    """Replace a graph by its int8 version, with its weights in the same place."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    large = data_of(file).exists()
    with tempfile.TemporaryDirectory(dir=file.parent) as part:
        prepared = Path(part) / file.name
        quant_pre_process(
            file,
            prepared,
            skip_symbolic_shape=True,
            save_as_external_data=large,
            all_tensors_to_one_file=True,
            external_data_location=data_of(prepared).name,
        )
        data_of(file).unlink(missing_ok=True)
        quantize_dynamic(
            prepared,
            file,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )

"""A recognizer as graphs for onnxruntime: front end, encoder, CTC, decoder step."""

import contextlib
import copy
import importlib.util
import io
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from espnet_l0prune.deploy.verify import encode, probe
from espnet_l0prune.plugin.espnet_modules import (
    BaseTransformerDecoder,
    BatchScorerInterface,
    DefaultFrontend,
    PositionalEncoding,
    RelPositionalEncoding,
    check_short_utt,
)
from espnet_l0prune.plugin.onnx import OnnxGraph

TOLERANCE = 1e-4  # in float32: in log-probability; else of the scale of an output
# What `divergence` may be in int8. Of a trained Conformer (6 x 96) it is 0.0003, for real
# speech and for random features; of random weights in 8 to 16 features, up to 0.034. At
# 0.05 nats, the probability of anything is off by at most 0.16 on the mean (Pinsker).
INT8_TOLERANCE = 0.05
NEEDED = ("onnx", "onnxscript", "onnxruntime")
FRAMES = 200  # of the example that is exported
OTHER_FRAMES = (31, 2 * FRAMES + 1, 10 * FRAMES)  # of those that are compared, and the
# fewest that an encoder takes
HYPOTHESES, STEPS = 3, 5  # of a beam search


class Graph(nn.Module):
    """A part of a recognizer.

    `varying` names its inputs and their dimensions of any size, `outputs` its outputs.
    """

    varying: ClassVar[dict[str, dict[int, str]]]
    outputs: ClassVar[tuple[str, ...]]
    file: ClassVar[str]

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def example(self, frames: int) -> tuple[Tensor, ...]:
        """Random inputs of some length."""
        raise NotImplementedError


class FrontendGraph(Graph):
    """`speech` (1, samples) to normalized `feats` (1, frames, features)."""

    varying = {"speech": {1: "samples"}}
    outputs, file = ("feats",), "frontend.onnx"

    def example(self, frames: int) -> tuple[Tensor]:
        stft = self.model.frontend.stft
        samples = max(stft.hop_length * frames, stft.n_fft)  # it takes half of these
        return (0.1 * torch.randn(1, samples),)

    def forward(self, speech: Tensor) -> Tensor:
        # ESPnet's front end asks for the values of lengths; these are its parts
        spectrum, _ = self.model.frontend.stft(speech)
        feats, _ = self.model.frontend.logmel(spectrum.square().sum(-1))
        if self.model.normalize is not None:
            feats, _ = self.model.normalize(feats, whole(feats))
        return feats


class EncoderGraph(Graph):
    """`feats` (1, frames, features) to `encoder_out` (1, frames left, size)."""

    varying = {"feats": {1: "frames"}}
    outputs, file = ("encoder_out",), "encoder.onnx"

    def example(self, frames: int) -> tuple[Tensor]:
        return (probe(self.model.encoder.input_size, (frames,))[0].float(),)

    def forward(self, feats: Tensor) -> Tensor:
        return encode(self.model, feats, whole(feats))[0]


class CTCGraph(Graph):
    """`encoder_out` (batch, frames, size) to `logp` (batch, frames, tokens)."""

    varying = {"encoder_out": {0: "batch", 1: "frames"}}
    outputs, file = ("logp",), "ctc.onnx"

    def example(self, frames: int) -> tuple[Tensor]:
        size = HYPOTHESES, 1 + frames // 4, self.model.encoder.output_size()
        return (torch.randn(size),)

    def forward(self, encoder_out: Tensor) -> Tensor:
        return self.model.ctc.log_softmax(encoder_out)


class DecoderGraph(Graph):
    """`ys` (batch, length), `memory` (batch, frames, size) and `cache` (blocks, batch,
    length - 1, width) to `logp` (batch, tokens) of the next token, and `new_cache`.

    Each call takes the cache that the one before gave; the first one of length 0.
    """

    varying = {
        "ys": {0: "batch", 1: "length"},
        "memory": {0: "batch", 1: "frames"},
        "cache": {1: "batch", 2: "length_before"},
    }
    outputs, file = ("logp", "new_cache"), "decoder.onnx"

    def example(self, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        memory = torch.randn(HYPOTHESES, frames, self.model.encoder.output_size())
        ys = torch.randint(self.model.vocab_size, (HYPOTHESES, 1 + frames // 10))
        width = self.model.decoder.embed(ys).size(-1)
        blocks = len(self.model.decoder.decoders)
        return ys, memory, torch.randn(blocks, HYPOTHESES, ys.size(1) - 1, width)

    def forward(self, ys: Tensor, memory: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.ones(ys.size(1), ys.size(1), dtype=torch.bool).tril()[None]
        step = self.model.decoder.forward_one_step
        logp, new = step(ys, mask, memory, cache=[*cache])
        return logp, torch.stack(new)


def whole(feats: Tensor) -> Tensor:
    """The length of one utterance without padding, as a tensor of the graph."""
    return torch.ones(1, dtype=torch.long) * feats.size(1)


def shortest(encoder: nn.Module) -> int:
    """The fewest frames that an encoder of ESPnet's takes."""
    _, fewest = check_short_utt(getattr(encoder, "embed", None), 0)
    return max(fewest, 1)


def write_onnx(model: nn.Module, folder: Path, int8: bool = False) -> list[Graph]:
    """Export what onnxruntime can run of a model: frontend.onnx, encoder.onnx, ctc.onnx
    and decoder.onnx.

    The front end where it is ESPnet's default one, the decoder where it is a
    Transformer's; ESPnet runs the rest. Each graph in float is compared with torch on
    inputs of other lengths.

    Args:
        model: ESPnet's, without gates, in evaluation mode
        folder: to write into; graphs that are too large for one file have their weights
            in another of the same name and `.data`
        int8: quantize the matrix products of encoder and decoder dynamically, after they
            were compared

    Returns:
        the parts that were written

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed
        ValueError: a network that torch cannot export, or exports wrongly
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )
    kinds: list[type[Graph]] = [EncoderGraph]
    default = type(model.frontend) is DefaultFrontend and model.frontend.stft is not None
    if default and model.preencoder is None:
        kinds.append(FrontendGraph)
    if model.ctc is not None:
        kinds.append(CTCGraph)
    if isinstance(model.decoder, BaseTransformerDecoder):
        kinds.append(DecoderGraph)
    written = copy.deepcopy(model).requires_grad_(False)
    for module in written.modules():
        if isinstance(module, (PositionalEncoding, RelPositionalEncoding)):
            compute_positions_(module)
    for kind in kinds:
        file = folder / kind.file
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _write(kind(written), file)
            _check(kind(model), file)
        if int8 and kind in (EncoderGraph, DecoderGraph):
            _quantize(file)
    return [kind(model) for kind in kinds]


def compute_positions_(module: nn.Module) -> None:
    """Have a positional encoding computed in the graph, for inputs of any length, where
    ESPnet takes it from a table."""
    reverse, length = getattr(module, "reverse", False), module.pe.size(1)
    relative = isinstance(module, RelPositionalEncoding)
    exponents = torch.arange(0, module.d_model, 2, dtype=torch.float32)
    frequencies = torch.exp(exponents * -(math.log(10_000.0) / module.d_model))

    def extend(x: Tensor) -> None:
        frames = x.size(1)
        if relative:
            positions = frames - 1 - torch.arange(2 * frames - 1)
        elif reverse:  # the first ones of the table, however long the input is
            positions = torch.sym_max(frames, length) - 1 - torch.arange(frames)
        else:
            positions = torch.arange(frames)
        angles = positions[:, None] * frequencies
        module.pe = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)[None]

    module.extend_pe = extend


def _write(graph: Graph, file: Path) -> None:
    inputs = graph.example(FRAMES)
    try:
        with _quiet():
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
        part.metadata_props.clear()  # half of a small file, with paths of this machine
    program.save(file, external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's messages, which no user can do anything about."""
    logger = logging.getLogger("torch.onnx")
    level, noise = logger.level, io.StringIO()
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def _check(graph: Graph, file: Path) -> None:
    runtime = OnnxGraph(str(file))
    for frames in (shortest(graph.model.encoder), *OTHER_FRAMES):
        inputs = graph.example(frames)
        expected = graph(*inputs)
        found = runtime(**dict(zip(graph.varying, inputs, strict=True)))
        for name, a, b in zip(
            graph.outputs,
            expected if isinstance(expected, tuple) else [expected],
            found,
            strict=True,
        ):
            apart = distance(a, b, absolute=name == "logp")
            if not apart <= TOLERANCE:
                raise ValueError(
                    f"{file.name} as torch wrote it differs by {apart:.1e} in {name} for "
                    f"{frames} frames; expected at most {TOLERANCE:.0e}. Export the "
                    "model as a plugin or as a stock model."
                )


def data_of(graph: Path) -> Path:
    """Where the weights of a large graph lie: torch decides that by their size."""
    return graph.with_name(graph.name + ".data")


def _quantize(file: Path) -> None:
    """Replace a graph by its int8 one, whose weights lie where those of the float one do:
    in the file, or beside it."""
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


def distance(a: Tensor, b: Tensor, absolute: bool) -> float:
    """The largest difference; of the larger values' scale, or absolute.

    NaN where shapes differ, or anything is NaN.
    """
    if a.shape != b.shape:
        return math.nan
    apart = (a - b).abs().max()
    return float(apart if absolute else apart / a.abs().max().clamp(min=1))


def divergence(a: Tensor, b: Tensor, distributions: bool) -> float:
    """How far `b` is from `a` on the mean: of distributions, given as log-probabilities,
    the Kullback-Leibler divergence in nats; else the square of what differs, of that of
    `a`.

    NaN where shapes differ, or anything is NaN.
    """
    if a.shape != b.shape:
        return math.nan
    if distributions:
        return float((a.exp() * (a - b)).sum(-1).mean())
    return float((a - b).square().sum() / a.square().sum())


@torch.no_grad()
def furthest(
    one: nn.Module, two: nn.Module, measure: Callable[[Tensor, Tensor, bool], float]
) -> float:
    """The largest of what `distance` or `divergence` finds between two models, in
    float32: of the encoder's output, and of the log-probabilities of CTC and of an
    attention decoder; NaN above all.

    For random features of some lengths; the decoder makes some steps, as a beam search
    asks for them.
    """
    apart: list[float] = []
    for frames in (shortest(one.encoder), FRAMES, *OTHER_FRAMES):
        feats, lengths = probe(one.encoder.input_size, (frames,), seed=frames)
        pairs = zip(*(_found(m, feats.float(), lengths) for m in (one, two)), strict=True)
        apart += [measure(a, b, is_logp) for (a, is_logp), (b, _) in pairs]
    return max(apart, key=lambda d: (d != d, d))


def _found(
    model: nn.Module, feats: Tensor, lengths: Tensor
) -> Iterator[tuple[Tensor, bool]]:
    """What a model computes, and whether that is log-probabilities."""
    memory, _ = encode(model, feats, lengths)
    yield memory, False
    if model.ctc is not None:
        yield model.ctc.log_softmax(memory), True
    if isinstance(model.decoder, BatchScorerInterface):
        ys = torch.arange(HYPOTHESES * STEPS).view(HYPOTHESES, -1) % model.vocab_size
        states, many = [None] * HYPOTHESES, memory.expand(HYPOTHESES, -1, -1)
        for length in range(1, STEPS + 1):
            logp, states = model.decoder.batch_score(ys[:, :length], states, many)
            yield logp, True

"""sherpa-onnx runs a recognizer by a route that it has for models of another kind.

There are two, each with its own graph. Both decode by the best token of the CTC in each
frame.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_l0prune.deploy.exports.divergence import (
    OTHER_FRAMES,
    distance,
    divergence,
)
from espnet_l0prune.deploy.exports.fbank import N_FFT, N_MELS, RATE, SHIFT, offset_from
from espnet_l0prune.deploy.exports.graphs import (
    FrontendGraph,
    Graph,
    shortest,
    whole,
)
from espnet_l0prune.deploy.exports.joining import batch_, put_before_
from espnet_l0prune.deploy.exports.onnx import (
    FLOAT_TOLERANCE,
    INT8_TOLERANCE,
    check,
    exportable,
    quantize,
    refuse_without_graph,
    write_graph,
)
from espnet_l0prune.deploy.verify import encode
from espnet_l0prune.networks.espnet_modules import (
    DefaultFrontend,
    GlobalMVN,
    UtteranceMVN,
)
from espnet_l0prune.plugin.heads import after_encoder
from espnet_l0prune.plugin.onnx import OnnxGraph

REMEDY = (
    "Fine-tune it with normalize: utterance_mvn, or with hop_length: 160, n_fft: 512 and "
    "80 mel bands up to 8 kHz in frontend_conf."
)
HEARD = {  # of ESPnet's options of a spectrum, those that the runtime's features have
    "n_fft": N_FFT,
    "hop_length": SHIFT,
    "window": "hann",
    "center": True,
    "normalized": False,
}
SHORTEST_WINDOW = 400  # samples


class RecognizerGraph(Graph):
    """This graph is the encoder with the CTC; input too short for it gains zeros."""

    varying: ClassVar = {"feats": {1: "frames"}}
    outputs, file, text = ("logp",), "model.onnx", ""

    def example(self, frames: int) -> tuple[Tensor]:
        return (torch.randn(1, frames, self.model.frontend.output_size()),)

    def forward(self, feats: Tensor) -> Tensor:
        missing = torch.sym_max(shortest(self.model.encoder) - feats.size(1), 0)
        feats = F.pad(feats, (0, 0, 0, missing))
        return self.model.ctc.log_softmax(encode(self.model, feats, whole(feats))[0])


class AnyFrontendGraph(FrontendGraph):
    """This graph is the front end; audio too short for the encoder gains zeros."""

    def forward(self, speech: Tensor) -> Tensor:
        least = self.example(shortest(self.model.encoder))[0].size(1)
        return super().forward(
            F.pad(speech, (0, torch.sym_max(least - speech.size(1), 0)))
        )


class Route(ABC):
    """A `Route` is a way in which sherpa-onnx runs a recognizer.

    Attributes:
        option: the option of sherpa-onnx's commands that takes the graph
        function: the function of its Python package
        differs: what is not as in ESPnet, for the user
        model: ESPnet's model
    """

    option: ClassVar[str]
    function: ClassVar[str]
    differs: ClassVar[str]

    def __init__(self, model: nn.Module):
        self.model = model

    @staticmethod
    @abstractmethod
    def why_not(model: nn.Module) -> str | None:
        """Return why a model cannot take this route, if it cannot."""

    @abstractmethod
    def finish_(self, file: Path) -> None:
        """Bring the recognizer's graph into the form that the runtime reads."""

    @abstractmethod
    def example(self, frames: int) -> Tensor:
        """Return random input of some length, as the runtime hands it over."""

    @abstractmethod
    def logp(self, x: Tensor) -> Tensor:
        """Return what torch answers to such input, (1, frames, tokens)."""

    @abstractmethod
    def run(self, graph: OnnxGraph, inputs: list[Tensor]) -> list[Tensor]:
        """Return what the finished graph answers to several inputs."""


class WaveformRoute(Route):
    """This route, that of Omnilingual ASR, hands over the waveform.

    It is normalized to mean 0 and variance 1, so that the loudness is lost.
    """

    option, function = "omnilingual-asr-model", "from_omnilingual_asr_ctc"
    differs = (
        "Features and normalization are ESPnet's and part of the graph. The runtime "
        "scales each waveform to a variance of 1, which a normalization by utterance "
        "undoes. Its timestamps are wrong, as it takes a frame for 20 ms."
    )

    @staticmethod
    def why_not(model: nn.Module) -> str | None:
        normalize = model.normalize
        if isinstance(normalize, UtteranceMVN) and normalize.norm_means:
            return None
        return "it takes normalize: utterance_mvn, as the runtime scales each waveform"

    def example(self, frames: int) -> Tensor:
        return AnyFrontendGraph(self.model).example(frames)[0]

    def logp(self, x: Tensor) -> Tensor:
        return RecognizerGraph(self.model)(AnyFrontendGraph(self.model)(x))

    def finish_(self, file: Path) -> None:
        # the front end is never quantized: its powers span too many magnitudes
        front = file.with_name(FrontendGraph.file)
        write_graph(AnyFrontendGraph(exportable(self.model)), front)
        check(AnyFrontendGraph(self.model), front)
        put_before_(front, file)
        front.unlink()

    def run(self, graph: OnnxGraph, inputs: list[Tensor]) -> list[Tensor]:
        return [graph(speech=x)[0] for x in inputs]


class FbankRoute(Route):
    """This route, that of Dolphin, hands over log-mel features, and normalizes them."""

    option, function = "dolphin-model", "from_dolphin_ctc"
    differs = (
        "The features are the runtime's: with a pre-emphasis, in frames that begin 5 ms "
        "later. What this adds to each feature was measured on noise, and is taken off. "
        "Its timestamps take a frame for 40 ms."
    )

    @staticmethod
    def why_not(model: nn.Module) -> str | None:
        frontend, normalize = model.frontend, model.normalize
        mel, stft = frontend.logmel.mel_options, frontend.stft
        window = stft.win_length or stft.n_fft
        has = {name: getattr(stft, name) for name in HEARD} | {
            "n_mels": mel["n_mels"],
            "fmin": mel["fmin"],
            "fmax": mel["fmax"],
            "htk": mel["htk"],
        }
        takes = HEARD | {"n_mels": N_MELS, "fmin": 0, "fmax": RATE // 2, "htk": False}
        for name, value in takes.items():
            if has[name] != value:
                return f"it takes {name}: {value}, and here it is {has[name]}"
        if window < SHORTEST_WINDOW:
            return f"it takes win_length: {SHORTEST_WINDOW} or more, and here is {window}"
        if normalize is not None and not isinstance(normalize, GlobalMVN):
            return f"it takes normalize: global_mvn, and here is {normalize}"
        return None

    def example(self, frames: int) -> Tensor:
        return torch.randn(1, frames, N_MELS)

    def logp(self, x: Tensor) -> Tensor:
        return RecognizerGraph(self.model)(x)

    def finish_(self, file: Path) -> None:
        offset, normalize = offset_from(self.model.frontend), self.model.normalize
        mean, deviation = offset, torch.ones(N_MELS)
        if normalize is not None and normalize.norm_means:
            mean = offset + normalize.mean
        if normalize is not None and normalize.norm_vars:
            deviation = normalize.std
        numbers = {"mean": mean, "invstd": 1 / deviation}
        metadata = {
            name: ",".join(f"{x:.8g}" for x in values.tolist())
            for name, values in numbers.items()
        }
        batch_(file, {"vocab_size": str(self.model.vocab_size), **metadata})

    def run(self, graph: OnnxGraph, inputs: list[Tensor]) -> list[Tensor]:
        lengths = torch.tensor([x.size(1) for x in inputs])
        batch = nn.utils.rnn.pad_sequence([x[0] for x in inputs], batch_first=True)
        logp, counts = graph(x=batch, x_length=lengths)
        return [one[None, :n] for one, n in zip(logp, counts.tolist(), strict=True)]


ROUTES: tuple[type[Route], ...] = (WaveformRoute, FbankRoute)


def route_of(model: nn.Module) -> Route:
    """Return the route by which a model runs as in ESPnet, or nearly so.

    Raises:
        ValueError: a model that sherpa-onnx cannot run
    """
    refuse_without_graph(model)
    frontend, what = model.frontend, type(model.frontend).__name__
    reasons = []
    if model.ctc is None:
        reasons.append("there is no CTC (ctc_weight is 0)")
    if type(frontend) is not DefaultFrontend or frontend.stft is None:
        reasons.append(f"the front end, {what}, is not ESPnet's default one")
    elif (rate := frontend.logmel.mel_options["sr"]) != RATE:
        reasons.append(f"the audio has {rate} samples a second, and not {RATE}")
    if model.preencoder is not None:
        reasons.append("there is a preencoder")
    if after_encoder(model):
        reasons.append("something follows the encoder")
    if not reasons:
        why_not = {route: route.why_not(model) for route in ROUTES}
        for route, why in why_not.items():
            if why is None:
                return route(model)
        for route, why in why_not.items():
            reasons.append(f"by {route.function}, {why}")
        reasons[-1] += f". {REMEDY.rstrip('.')}"
    raise ValueError(
        f"sherpa-onnx cannot run this model: {'; '.join(reasons)}. Otherwise export it "
        "as onnx, and decode it with onnxruntime."
    )


def write_model(route: Route, file: Path, int8: bool) -> str:
    """Write the graph of a model, and return in words how exact it is.

    Args:
        route: the model's route; the model has no gates and is in evaluation mode
        file: the file to write
        int8: whether to quantize the matrix products dynamically

    Raises:
        ValueError: a network that torch cannot export, or exports wrongly
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_graph(RecognizerGraph(exportable(route.model)), file)
        check(RecognizerGraph(route.model), file)
        if int8:
            quantize(file)
        route.finish_(file)
        apart = furthest(route, OnnxGraph(str(file)), divergence if int8 else distance)
    limit = INT8_TOLERANCE if int8 else FLOAT_TOLERANCE
    what = "mean divergence, in nats," if int8 else "difference of log-probabilities"
    if not apart <= limit:  # NaN is refused too
        raise ValueError(
            f"the graph is not the experiment's model: the largest {what} is "
            f"{apart:.1e}; expected at most {limit:.0e}. Nothing was written. Export it "
            f"{'without --int8' if int8 else 'as a plugin or a stock model'}."
        )
    return f"the largest {what} is {apart:.1e}"


@torch.no_grad()
def furthest(
    route: Route, graph: OnnxGraph, measure: Callable[[Tensor, Tensor, bool], float]
) -> float:
    """Return how far a finished graph is from torch at most, on inputs of some lengths.

    Args:
        route: the model's route
        graph: the graph
        measure: `distance` or `divergence`
    """
    lengths = (shortest(route.model.encoder), *OTHER_FRAMES)
    inputs = [route.example(frames) for frames in lengths]
    pairs = zip(inputs, route.run(graph, inputs), strict=True)
    return float(torch.tensor([measure(route.logp(x), y, True) for x, y in pairs]).max())

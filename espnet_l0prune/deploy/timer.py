"""Networks are timed in turns, on a device's terms, until their times are certain."""

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from espnet_l0prune.core.steps import Step
from espnet_l0prune.deploy.bench import encoder_input, random_speech
from espnet_l0prune.deploy.exports.graphs import EncoderGraph
from espnet_l0prune.deploy.exports.onnx import (
    exportable,
    quantize,
    refuse_without_graph,
    require_onnx,
    write_graph,
)
from espnet_l0prune.plugin.onnx import OnnxGraph

FEWEST, MOST = 5, 40  # rounds
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
CERTAIN = 0.005  # of the longest time, where no more rounds are needed


@dataclass(frozen=True)
class Terms:
    """The `Terms` say what is timed.

    Args:
        seconds: length of the audio, which is encoded at once
        runtime: `torch` or `onnxruntime`
        threads: number of threads
        int8: whether matrix products are quantized, which onnxruntime does
        minutes: after so long no further round begins

    Raises:
        ValueError: int8 in torch
    """

    seconds: float = 10.0
    runtime: str = "torch"
    threads: int = 1
    int8: bool = False
    minutes: float = 5.0

    def __post_init__(self):
        if self.int8 and self.runtime == "torch":
            raise ValueError(
                "--int8 is set with --runtime torch; expected --runtime onnxruntime, "
                "which can quantize"
            )

    def __str__(self) -> str:
        int8 = ", int8" if self.int8 else ""
        threads = "one thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.seconds:g} s of audio, {self.runtime}{int8}, {threads}"


@contextlib.contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Let torch use a number of threads within a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_memory_() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc.

    By default glibc returns large pieces to the system, or not, by what else lies around
    them. Where it does, each forward waits for new pages: the same encoder takes a third
    more time in one process than in another.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@torch.no_grad()
def time_encoders(
    models: Mapping[str, nn.Module],
    terms: Terms,
    rate: int,
    folder: Path,
    step: Step,
    fewest: int = FEWEST,
) -> tuple[dict[str, float], float]:
    """Time the encoders of models that read the same, in turns.

    Args:
        models: ESPnet's models, without gates, by name
        terms: what is timed
        rate: the audio's samples per second
        folder: an empty folder, for graphs
        step: is told what is done, and how long it will take
        fewest: the fewest rounds

    Returns:
        the median of each one's seconds; and the spread: the largest uncertainty of a
        median, as a share of the longest one

    Raises:
        ImportError: onnxruntime is to run, and is not installed
        ValueError: audio that is too short, an encoder of which there is no graph
    """
    keep_memory_()
    first = next(iter(models.values()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        speech, _ = random_speech(first, terms.seconds, rate)
    args, kwargs = encoder_input(first, speech)
    times: dict[str, list[float]] = {name: [] for name in models}
    calls: dict[str, Callable[[], object]] = {}
    with on_threads(terms.threads):
        for i, (name, model) in enumerate(models.items()):
            if terms.runtime == "torch":
                calls[name] = _torch_call(model.encoder.eval(), args, kwargs)
                continue
            step(f"writing graph {i + 1} of {len(models)}")
            graph = _graph(model, folder / f"{i}.onnx", terms.int8)
            calls[name] = _graph_call(graph, args[0])
        begin, names = time.monotonic(), [*models]
        spread = 1.0
        for number in range(MOST + 1):
            names = [*names[1:], names[0]]
            for name in names:
                calls[name]()  # its weights are in the caches then, as where it is alone
                start = time.perf_counter()
                calls[name]()
                times[name].append(time.perf_counter() - start)
            taken = time.monotonic() - begin
            if number == 0:  # nothing is warm yet
                step(
                    f"{len(models)} encoders, some {taken * fewest:.0f} s to "
                    f"{min(taken * MOST, 60 * terms.minutes):.0f} s"
                )
                continue
            if number < max(fewest, 2):
                continue
            spread = _spread([one[1:] for one in times.values()])
            if spread <= CERTAIN or taken > 60 * terms.minutes:
                break
    return {name: statistics.median(one[1:]) for name, one in times.items()}, spread


def _torch_call(encoder: nn.Module, args: tuple, kwargs: dict) -> Callable[[], object]:
    return lambda: encoder(*args, **kwargs)


def _graph_call(graph: OnnxGraph, feats: torch.Tensor) -> Callable[[], object]:
    return lambda: graph(feats=feats)


def _graph(model: nn.Module, file: Path, int8: bool) -> OnnxGraph:
    """Return an encoder's graph, without gradients, loaded."""
    require_onnx()
    refuse_without_graph(model)
    with torch.random.fork_rng():
        write_graph(EncoderGraph(exportable(model)), file)
    if int8:
        quantize(file)
    return OnnxGraph(str(file))


def _spread(times: list[list[float]]) -> float:
    """Return how uncertain medians are: half of the middle half's width, over the root of
    the number of rounds, at most, as a share of the longest median."""
    longest = max(map(statistics.median, times))
    widths = []
    for one in times:
        low, _, high = statistics.quantiles(one, n=4)
        widths.append((high - low) / 2 / len(one) ** 0.5)
    return max(widths) / longest

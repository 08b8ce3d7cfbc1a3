"""Networks are timed in turns, under given conditions, until their times are certain."""

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from espnet_l0prune.core.steps import Step
from espnet_l0prune.deploy.bench import encoder_input, on_threads, random_speech
from espnet_l0prune.deploy.exports.graphs import EncoderGraph
from espnet_l0prune.deploy.exports.onnx import (
    exportable,
    quantize,
    refuse_without_graph,
    require_onnx,
    write_graph,
)
from espnet_l0prune.plugin.inputs import input_size_of
from espnet_l0prune.plugin.onnx import OnnxGraph

FEWEST, MOST = 5, 40  # rounds
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
CERTAIN = 0.005  # of the longest time, where no more rounds are needed


@dataclass(frozen=True)
class Conditions:
    """The `Conditions` say under which encoders are timed.

    Args:
        seconds: length of the audio, which is encoded at once
        runtime: `torch` or `onnxruntime`
        threads: number of threads
        int8: whether matrix products are quantized, which onnxruntime does
        minutes: after so long no round begins beyond the fewest

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
def memory_kept() -> Iterator[None]:
    """Let this process keep the memory that it frees within a `with` block, where the C
    library is glibc.

    By default glibc returns large pieces to the system, or not, by what else lies around
    them. Where it does, each forward waits for new pages, so that the same encoder takes
    more time in one process than in another. Afterwards glibc has its first defaults.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
    except (OSError, AttributeError):  # another C library
        yield
        return
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, 65_536)
        libc.mallopt(M_TRIM_THRESHOLD, 128 * 1024)
        libc.malloc_trim(0)


@torch.no_grad()
def time_encoders(
    models: Mapping[str, nn.Module],
    conditions: Conditions,
    rate: int,
    folder: Path,
    step: Step,
    fewest: int = FEWEST,
) -> tuple[dict[str, float], float]:
    """Time the encoders of models that read the same, in turns.

    Args:
        models: ESPnet's models, without gates, by name
        conditions: under which they are timed
        rate: the audio's samples per second
        folder: an empty folder, for graphs
        step: is told what is done, and how long it will take
        fewest: the fewest rounds

    Returns:
        the median of each one's seconds; and the spread: the largest uncertainty of a
        median, as a share of the longest one

    Raises:
        ImportError: onnxruntime is to run, and is not installed
        ValueError: encoders that read different features, audio that is too short, an
            encoder of which there is no graph
    """
    first = next(iter(models.values()))
    sizes = {name: input_size_of(model) for name, model in models.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the encoders read features of sizes {sizes}; expected the same of all"
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        speech, _ = random_speech(first, conditions.seconds, rate)
    args, kwargs = encoder_input(first, speech)
    times: dict[str, list[float]] = {name: [] for name in models}
    calls: dict[str, Callable[[], object]] = {}
    with on_threads(conditions.threads), memory_kept():
        for i, (name, model) in enumerate(models.items()):
            if conditions.runtime == "torch":
                calls[name] = partial(model.encoder.eval(), *args, **kwargs)
                continue
            step(f"writing graph {i + 1} of {len(models)}")
            graph = _graph(model, folder / f"{i}.onnx", conditions.int8)
            calls[name] = partial(graph, feats=args[0])
        begin, names = time.monotonic(), [*models]
        for number in range(max(MOST, fewest) + 1):
            names = [*names[1:], names[0]]
            for name in names:
                calls[name]()  # its weights are in the caches then, as where it is alone
                start = time.perf_counter()
                calls[name]()
                times[name].append(time.perf_counter() - start)
            taken = time.monotonic() - begin
            if number == 0:  # nothing is warm yet
                least, most = taken * fewest, min(taken * MOST, 60 * conditions.minutes)
                step(f"{len(models)} encoders, {least:.0f} s to {max(least, most):.0f} s")
            elif number >= max(fewest, 2):
                late = taken > 60 * conditions.minutes
                if late or _spread(times) <= CERTAIN:
                    break
    return {k: statistics.median(one[1:]) for k, one in times.items()}, _spread(times)


def _graph(model: nn.Module, file: Path, int8: bool) -> OnnxGraph:
    """Return an encoder's graph, without gradients, loaded."""
    require_onnx()
    refuse_without_graph(model)
    with torch.random.fork_rng():
        write_graph(EncoderGraph(exportable(model)), file)
    if int8:
        quantize(file)
    return OnnxGraph(str(file))


def _spread(times: Mapping[str, list[float]]) -> float:
    """Return how uncertain medians are, without the first round: half of the middle
    half's width over the root of the number of rounds, at most, as a share of the longest
    median."""
    medians, widths = [], []
    for _, *one in times.values():
        low, middle, high = statistics.quantiles(one, n=4)
        medians.append(middle)
        widths.append((high - low) / 2 / len(one) ** 0.5)
    return max(widths) / max(medians)

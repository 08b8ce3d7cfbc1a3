"""The encoders of models are timed under given conditions, in torch or onnxruntime."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from espnet_l0prune.core.measuring import (
    FEWEST,
    graph_calls,
    medians_of,
    memory_kept,
    time_in_turns,
)
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
    args, kwargs = input_of(models, conditions.seconds, rate)
    calls: dict[str, Callable[[], object]]
    with on_threads(conditions.threads), memory_kept():
        if conditions.runtime == "torch":
            calls = {
                name: partial(model.encoder.eval(), *args, **kwargs)
                for name, model in models.items()
            }
        else:
            files = write_graphs(models, conditions.int8, folder, step)
            calls = graph_calls(files, args[0].shape, conditions.threads, step)
        times = time_in_turns(calls, step, conditions.minutes, fewest)
    return medians_of(times)


def input_of(
    models: Mapping[str, nn.Module], seconds: float, rate: int
) -> tuple[tuple, dict]:
    """Return what ESPnet's models give their encoders for the same random audio.

    Args:
        models: ESPnet's models that read the same, by name
        seconds: length of the audio
        rate: its samples per second

    Raises:
        ValueError: encoders that read different features, audio that is too short
    """
    first = next(iter(models.values()))
    sizes = {name: input_size_of(model) for name, model in models.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the encoders read features of sizes {sizes}; expected the same of all"
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        speech, _ = random_speech(first, seconds, rate)
    return encoder_input(first, speech)


@torch.no_grad()
def write_graphs(
    models: Mapping[str, nn.Module], int8: bool, folder: Path, step: Step
) -> dict[str, Path]:
    """Write the graphs of models' encoders into a folder, and return the files by name.

    Args:
        models: ESPnet's models, without gates, by name
        int8: whether to quantize matrix products
        folder: an empty folder
        step: is told what is done

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed
        ValueError: an encoder of which there is no graph
    """
    require_onnx()
    files = {}
    for i, (name, model) in enumerate(models.items()):
        step(f"writing graph {i + 1} of {len(models)}")
        refuse_without_graph(model)
        files[name] = folder / f"{i}.onnx"
        with torch.random.fork_rng():
            write_graph(EncoderGraph(exportable(model)).eval(), files[name])
        if int8:
            quantize(files[name])
    return files

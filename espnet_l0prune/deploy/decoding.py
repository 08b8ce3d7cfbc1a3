"""Decoding is timed part by part, as a user waits for it."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import soundfile
import torch
from espnet2.bin.asr_inference import Speech2Text
from torch import Tensor, nn

from espnet_l0prune.deploy.bench import on_threads
from espnet_l0prune.plugin.building import plain_tensors_only, sample_rate_of, task_name
from espnet_l0prune.plugin.experiment import read_config


@dataclass
class Times:
    """The `Times` of a recognizer are seconds for all utterances together.

    Attributes:
        features: the front end, and what else comes before the encoder
        encoder: the encoder
        ctc: the best token of each frame by CTC; None without CTC
        search: the beam search, joint with attention where the model has a decoder
    """

    features: float
    encoder: float
    ctc: float | None
    search: float

    @property
    def joint(self) -> float:
        """Return the seconds of decoding with the beam search."""
        return self.features + self.encoder + self.search

    @property
    def greedy(self) -> float | None:
        """Return the seconds of greedy decoding by CTC; None without CTC."""
        return None if self.ctc is None else self.features + self.encoder + self.ctc


def read_audio(files: Sequence[Path], rate: int) -> list[Tensor]:
    """Read audio of one channel, (samples,) each.

    Args:
        files: the files
        rate: the expected samples per second

    Raises:
        ValueError: a file that cannot be read, or other audio
    """
    waves = []
    for file in files:
        try:
            wave, found = soundfile.read(file, dtype="float32")
        except (OSError, soundfile.SoundFileError) as e:
            raise ValueError(f"{file} cannot be read ({e}); expected audio") from e
        if found != rate or wave.ndim > 1:
            raise ValueError(
                f"{file} has {found} samples a second and {wave.ndim} dimensions; "
                f"expected one channel of {rate} samples a second"
            )
        waves.append(torch.from_numpy(wave))
    return waves


def recognizer(config: Path, weights: Path, options: Mapping[str, Any]) -> Speech2Text:
    """Return ESPnet's recognizer of an experiment.

    Args:
        config, weights: the experiment's configuration and checkpoint
        options: how to search, as `Speech2Text` takes them

    Raises:
        ValueError: an experiment of another task than asr
    """
    args = read_config(config)
    if (task := task_name(args)) != "asr":
        raise ValueError(
            f"{config} is of ESPnet's {task} task; expected one of the asr task, whose "
            "decoding can be timed"
        )
    with plain_tensors_only():
        return Speech2Text(str(config), str(weights), **options)


def rate_of(config: Path) -> int:
    """Return how many samples a second of audio has for an experiment."""
    return sample_rate_of(read_config(config))


@torch.no_grad()
def time_decoding(
    recognizers: Mapping[str, Speech2Text],
    waves: Sequence[Tensor],
    rounds: int,
    track: Callable[[Sequence], Iterable] = iter,
) -> dict[str, Times]:
    """Time recognizers on one thread, in turns at each utterance.

    Args:
        recognizers: ESPnet's recognizers, by name
        waves: utterances, (samples,) each
        rounds: each figure is the median of so many, after one that is left out
        track: iterates over the utterances, and may show the progress

    Returns:
        the times of each
    """
    sums = {name: [0.0] * 4 for name in recognizers}
    with on_threads(1):
        for wave in track(waves):
            found: dict[str, list[list[float]]] = {name: [] for name in recognizers}
            for _ in range(rounds + 1):
                for name, one in recognizers.items():
                    found[name].append(_once(one, wave))
            for name, times in found.items():
                for i, part in enumerate(zip(*times[1:], strict=True)):
                    sums[name][i] += median(part)
    return {
        name: Times(
            features,
            encoder,
            None if recognizers[name].asr_model.ctc is None else ctc,
            search,
        )
        for name, (features, encoder, ctc, search) in sums.items()
    }


def _once(one: Speech2Text, wave: Tensor) -> list[float]:
    """Return the seconds of features, encoder, CTC and search of an utterance."""
    model, begin = one.asr_model, time.perf_counter()
    with _timed(model) as spent:
        one(wave)
    whole = time.perf_counter() - begin
    ctc = 0.0
    if model.ctc is not None:
        begin = time.perf_counter()
        model.ctc.argmax(spent["output"])
        ctc = time.perf_counter() - begin
    features = spent["encode"] - spent["encoder"]
    return [features, spent["encoder"], ctc, whole - spent["encode"]]


@contextmanager
def _timed(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Note for how long a model encodes, for how long its encoder, and the output."""
    spent: dict[str, Any] = {}
    begun: list[float] = []
    encode = model.encode

    def before(*_):
        begun.append(time.perf_counter())

    def after(*_):
        spent["encoder"] = time.perf_counter() - begun.pop()

    def encode_and_note(*args, **kwargs):
        begin = time.perf_counter()
        output = encode(*args, **kwargs)
        spent["encode"] = time.perf_counter() - begin
        heard = output[0]
        spent["output"] = heard[0] if isinstance(heard, tuple) else heard
        return output

    hooks = [
        model.encoder.register_forward_pre_hook(before),
        model.encoder.register_forward_hook(after),
    ]
    model.encode = encode_and_note
    try:
        yield spent
    finally:
        del model.encode
        for hook in hooks:
            hook.remove()

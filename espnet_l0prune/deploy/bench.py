"""Multiply-accumulates and real-time factor of a model's encoder."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.networks.espnet_modules import TooShortUttError
from espnet_l0prune.plugin.counting import FRAMES_A_SECOND, input_size_of


@torch.no_grad()
def count_macs(network: nn.Module, forward: Callable[[nn.Module], object]) -> int:
    """Multiply-accumulates of one forward, as torch counts them.

    Matrix products and convolutions; not norms, activations, softmax, element-wise
    products or recurrent layers.

    Args:
        network: what is run
        forward: runs it
    """
    # the counter follows whatever requires a gradient, and trips over a Constant's view
    probe = copy.deepcopy(network).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        forward(probe)
    return counter.get_total_flops() // 2


@torch.no_grad()
def encoder_call(model: nn.Module, speech: Tensor) -> Callable[[nn.Module], object]:
    """What a model's encoder is asked for one utterance.

    Features and normalization are done here, so that only the encoder is counted or
    timed by what is returned.

    Args:
        model: ESPnet's ASR model
        speech: (samples,), or (frames, size) of a model that is fed with features

    Raises:
        ValueError: speech that is too short for the subsampling
    """
    found = []
    hook = model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: found.append((args, kwargs)), with_kwargs=True
    )
    try:
        model.eval().encode(speech[None], torch.tensor([len(speech)]))
    except TooShortUttError as e:
        raise ValueError(f"the audio is too short: {e}; expected a longer one") from e
    finally:
        hook.remove()
    ((args, kwargs),) = found
    return lambda encoder: encoder(*args, **kwargs)


def random_speech(model: nn.Module, seconds: float, rate: int) -> tuple[Tensor, int]:
    """What a model can be timed with: (samples,), or (frames, size) where it is fed with
    features; and how many of them are a second.

    Args:
        model: ESPnet's ASR model
        seconds: length of the audio
        rate: samples a second
    """
    if model.frontend is None:
        frames = torch.randn(int(seconds * FRAMES_A_SECOND), input_size_of(model))
        return frames, FRAMES_A_SECOND
    return 0.1 * torch.randn(int(seconds * rate)), rate


def encoder_macs(model: nn.Module, seconds: float, rate: int) -> int:
    """Multiply-accumulates of the encoder for one utterance; see `count_macs`, and
    `random_speech` for the arguments."""
    with torch.random.fork_rng():
        speech, _ = random_speech(model, seconds, rate)
    return count_macs(model.encoder, encoder_call(model, speech))


@torch.no_grad()
def real_time_factors(
    models: dict[str, nn.Module],
    waves: Sequence[Tensor],
    rate: int,
    rounds: int = 5,
    track: Callable[[Sequence], Iterable] = iter,
) -> dict[str, float]:
    """Time of the encoder alone over audio time, on one thread, by name.

    The models take turns on each utterance; the figure is the median round, without the
    first.

    Args:
        models: by name
        waves: utterances, (samples,) or (frames, size) each
        rate: samples or frames a second
        rounds: how often each model encodes all utterances, the first time aside
        track: goes through the rounds of an utterance, and can tell how far it has come
    """
    seconds = sum(len(wave) for wave in waves) / rate
    times = {name: [0.0] * (rounds + 1) for name in models}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for wave in waves:
            calls = {name: encoder_call(model, wave) for name, model in models.items()}
            for i in track(range(rounds + 1)):
                for name, model in models.items():
                    begin = time.perf_counter()
                    calls[name](model.encoder)
                    times[name][i] += time.perf_counter() - begin
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(spent[1:]) / seconds for name, spent in times.items()}


def sizes_and_times(
    models: dict[str, nn.Module], waves: Sequence[Tensor], rate: int, seconds: int
) -> dict[str, dict[str, float]]:
    """What models cost, beside each other, by name: parameters of encoder and model, MACs
    of the encoder, and its real-time factor by utterance and on long pieces.

    Args:
        models: ESPnet's ASR models, by name
        waves: utterances to time, (samples,) each
        rate: samples a second
        seconds: length of the audio that MACs are counted for, and of the pieces that the
            utterances in a row are cut into; without a `long_rtf` where they are shorter
    """
    rtf = {"rtf": real_time_factors(models, waves, rate)}
    if pieces := torch.cat([*waves]).split(seconds * rate)[:-1]:
        rtf["long_rtf"] = real_time_factors(models, pieces, rate)
    return {
        name: {
            "encoder_parameters": count_parameters(model.encoder),
            "parameters": count_parameters(model),
            "macs": encoder_macs(model, seconds, rate),
            **{kind: found[name] for kind, found in rtf.items()},
        }
        for name, model in models.items()
    }

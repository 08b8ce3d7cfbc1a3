"""A model's encoder is measured: its multiply-accumulates and its real-time factor."""

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.networks.espnet_modules import TOO_SHORT
from espnet_l0prune.networks.sites import layers_of
from espnet_l0prune.plugin.inputs import (
    input_size_of,
    length_of,
    prompt,
    rate_of,
    reads_audio,
    reads_tokens,
)


@torch.no_grad()
def count_macs(network: nn.Module, forward: Callable[[nn.Module], object]) -> int:
    """Count the multiply-accumulates of one forward, as torch does.

    Matrix products and convolutions are counted, but not norms, activations, softmax,
    element-wise products or recurrent layers.

    Args:
        network: the network to run
        forward: runs it
    """
    # with gradients the counter would fail on the view that a Constant returns
    probe = copy.deepcopy(network).eval().requires_grad_(False)
    # nor would it count a fused attention on a CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(probe)
    return counter.get_total_flops() // 2


@torch.no_grad()
def encoder_call(model: nn.Module, speech: Tensor) -> Callable[[nn.ModuleList], object]:
    """Return a function that calls an encoder as ESPnet's model does for one utterance.

    Features and normalization are computed before, so that only the encoder is counted or
    timed, and a self-supervised model in front of it. The function takes what `measured`
    returns. See `encoder_input` for the arguments.
    """
    args, kwargs = encoder_input(model, speech)
    lengths = torch.tensor([len(speech)])

    def call(networks: nn.ModuleList) -> object:
        for frontend in networks[:-1]:
            frontend(speech[None], lengths)
        return networks[-1](*args, **kwargs)

    return call


@torch.no_grad()
def encoder_input(model: nn.Module, speech: Tensor) -> tuple[tuple, dict]:
    """Return what ESPnet's model gives its encoder for one utterance.

    Args:
        model: ESPnet's ASR model
        speech: (samples,), or (frames, size) for a model that reads features

    Raises:
        ValueError: speech that is too short for the subsampling
    """
    calls: list[tuple[tuple, dict]] = []
    hook = model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        lengths = torch.tensor([len(speech)])
        model.eval().encode(speech[None], lengths, **prompt(model))
    except TOO_SHORT as e:
        raise ValueError(f"the audio is too short: {e}; expected a longer one") from e
    finally:
        hook.remove()
    return calls[0]


def measured(model: nn.Module) -> nn.ModuleList:
    """Return what is counted and timed of a model: the encoder.

    If the front end is a self-supervised model, it is the first of two.
    """
    heard = [model.frontend] if layers_of(model.frontend) else []
    return nn.ModuleList([*heard, model.encoder])


def random_speech(model: nn.Module, seconds: float, rate: int) -> tuple[Tensor, int]:
    """Return random input with which a model can be timed, and its rate.

    Args:
        model: ESPnet's ASR model
        seconds: length of the audio
        rate: samples per second

    Returns:
        (samples,), (frames, size) for a model that reads features, or (tokens,); and how
        many of these make a second
    """
    if not reads_audio(model):
        rate, length = rate_of(model), length_of(model, seconds)
        if reads_tokens(model):
            return torch.randint(model.src_vocab_size, (length,)), rate
        return torch.randn(length, input_size_of(model)), rate
    return 0.1 * torch.randn(int(seconds * rate)), rate


def encoder_macs(model: nn.Module, seconds: float, rate: int) -> int:
    """Count the multiply-accumulates of the encoder for one utterance.

    Args:
        model: ESPnet's ASR model
        seconds: length of the audio
        rate: samples per second
    """
    with torch.random.fork_rng():
        speech, _ = random_speech(model, seconds, rate)
    return count_macs(measured(model), encoder_call(model, speech))


@contextlib.contextmanager
def on_threads(number: int) -> Iterator[None]:
    """Let torch use a number of threads within a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def real_time_factors(
    models: dict[str, nn.Module],
    waves: Sequence[Tensor],
    rate: int,
    rounds: int = 5,
    track: Callable[[Sequence], Iterable] = iter,
) -> dict[str, float]:
    """Return the encoder's time divided by the audio's, on one thread, by model.

    The models take turns on each utterance. The figure is the median round, where the
    first round is left out.

    Args:
        models: ESPnet's ASR models, by name
        waves: utterances, (samples,) or (frames, size) each
        rate: samples or frames per second
        rounds: how often each model encodes all utterances after a first, unmeasured time
        track: iterates over the rounds of an utterance, and may show the progress
    """
    seconds = sum(len(wave) for wave in waves) / rate
    times = {name: [0.0] * (rounds + 1) for name in models}
    with on_threads(1):
        for wave in waves:
            calls = {name: encoder_call(model, wave) for name, model in models.items()}
            networks = {name: measured(model) for name, model in models.items()}
            for i in track(range(rounds + 1)):
                for name in models:
                    begin = time.perf_counter()
                    calls[name](networks[name])
                    times[name][i] += time.perf_counter() - begin
    return {name: statistics.median(spent[1:]) / seconds for name, spent in times.items()}


def sizes_and_times(
    models: dict[str, nn.Module], waves: Sequence[Tensor], rate: int, seconds: int
) -> dict[str, dict[str, float]]:
    """Return what models cost, side by side: sizes, MACs and real-time factors.

    These are the parameters of encoder and model, the encoder's MACs, and its real-time
    factor by utterance and on long pieces.

    Args:
        models: ESPnet's ASR models, by name
        waves: utterances to time, (samples,) each
        rate: samples per second
        seconds: length of the audio for which MACs are counted, and of the pieces into
            which the joined utterances are cut; if these are shorter in all, there is no
            `long_rtf`
    """
    rtf = {"rtf": real_time_factors(models, waves, rate)}
    if pieces := torch.cat([*waves]).split(seconds * rate)[:-1]:
        rtf["long_rtf"] = real_time_factors(models, pieces, rate)
    return {
        name: {
            "encoder_parameters": count_parameters(measured(model)),
            "parameters": count_parameters(model),
            "macs": encoder_macs(model, seconds, rate),
            **{kind: factors[name] for kind, factors in rtf.items()},
        }
        for name, model in models.items()
    }

"""Multiply-accumulates and real-time factor of a model's encoder."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


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


def encoder_macs(model: nn.Module, seconds: float, rate: int = 16_000) -> int:
    """Multiply-accumulates of the encoder for one utterance; see `count_macs`.

    Args:
        model: ESPnet's ASR model
        seconds: length of the audio
        rate: samples a second
    """
    model.eval()
    speech = torch.zeros(1, int(seconds * rate))
    with torch.no_grad():
        lengths = torch.tensor([speech.size(1)])
        feats, lengths = model._extract_feats(speech, lengths)
    return count_macs(model.encoder, lambda encoder: encoder(feats, lengths))


@torch.no_grad()
def real_time_factors(
    models: dict[str, nn.Module], waves: Sequence[Tensor], rate: int, rounds: int = 5
) -> dict[str, float]:
    """Encoding time over audio time, front end included, on one thread.

    The models take turns on the same utterances; the figure is the median round.

    Args:
        models: by name
        waves: utterances, (samples,) each
        rate: samples a second
        rounds: how often each model encodes all utterances
    """
    seconds = sum(len(wave) for wave in waves) / rate
    times: dict[str, list[float]] = {name: [] for name in models}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds + 1):
            for name, model in models.items():
                begin = time.perf_counter()
                for wave in waves:
                    model.eval().encode(wave[None], torch.tensor([len(wave)]))
                times[name].append((time.perf_counter() - begin) / seconds)
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(spent[1:]) for name, spent in times.items()}

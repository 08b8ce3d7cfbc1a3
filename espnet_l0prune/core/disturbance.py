"""Speech is disturbed while it is trained on, from nothing but the batch that has it.

There are noise of several colours, babble of other utterances, simulated rooms and narrow
bands. All of them leave an utterance's length as it is, and its padding silent.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchaudio.functional import (
    add_noise,
    fftconvolve,
    mu_law_decoding,
    mu_law_encoding,
)

NOISE_RATIO = 0.0, 20.0  # of signal to noise, in dB
BABBLE_RATIO = 5.0, 20.0
SLOPES = -1.0, 2.0  # of a noise's power by frequency: from blue over white to brown
VOICES = 3  # the most that babble
ECHO = 0.1, 0.8  # seconds in which a room's echo falls by 60 dB
ECHO_RATIO = 0.0, 12.0  # of direct sound to echo, in dB
LOWEST, HIGHEST = (50.0, 400.0), (1500.0, 4000.0)  # edges of a narrow band, in Hz
LEVELS = 256  # of the samples in a narrow band, by mu-law

# from an utterance (samples,), the others of its batch, and samples a second
Disturbance = Callable[[Tensor, list[Tensor], int], Tensor]


def _between(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _mixed(wave: Tensor, other: Tensor, ratio: tuple[float, float]) -> Tensor:
    if not bool(other.any()):
        return wave
    return add_noise(wave, other, wave.new_tensor(_between(*ratio)))


def noise(wave: Tensor, others: list[Tensor], rate: int) -> Tensor:
    """Add noise whose power falls as f^-s, with a slope s from -1 (blue) to 2 (brown)."""
    spectrum = torch.fft.rfft(torch.randn(len(wave), device=wave.device))
    frequencies = torch.arange(len(spectrum), device=wave.device).clamp(min=1)
    spectrum = spectrum * frequencies ** (-_between(*SLOPES) / 2)
    coloured = torch.fft.irfft(spectrum, n=len(wave))
    return _mixed(wave, coloured.to(wave.dtype), NOISE_RATIO)


def babble(wave: Tensor, others: list[Tensor], rate: int) -> Tensor:
    """Add the sum of up to `VOICES` other utterances, each from a random moment on."""
    voices = torch.zeros_like(wave)
    for i in torch.randperm(len(others)).tolist()[: int(_between(1, VOICES + 1))]:
        moment = int(_between(0, len(others[i])))
        voice = others[i].roll(-moment).repeat(math.ceil(len(wave) / len(others[i])))
        voices += voice[: len(wave)]
    return _mixed(wave, voices, BABBLE_RATIO)


def room(wave: Tensor, others: list[Tensor], rate: int) -> Tensor:
    """Add the echo of a room, which is decaying noise, after the direct sound."""
    seconds = _between(*ECHO)
    times = torch.arange(max(int(seconds * rate), 2), device=wave.device) / rate
    echo = torch.randn(len(times), device=wave.device) * 10 ** (-3 * times / seconds)
    echo[0] = 0
    echo *= 10 ** (-_between(*ECHO_RATIO) / 20) / echo.norm()
    echo[0] = 1
    return fftconvolve(wave, echo.to(wave.dtype))[: len(wave)]


def narrow_band(wave: Tensor, others: list[Tensor], rate: int) -> Tensor:
    """Keep a band of frequencies, and few levels of the samples, as telephones do."""
    spectrum = torch.fft.rfft(wave)
    frequencies = torch.fft.rfftfreq(len(wave), 1 / rate, device=wave.device)
    low, high = _between(*LOWEST), _between(*HIGHEST)
    heard = (frequencies > low) & (frequencies < high)
    band = torch.fft.irfft(spectrum * heard, n=len(wave))
    peak = band.abs().max().clamp(min=torch.finfo(band.dtype).tiny)
    return peak * mu_law_decoding(mu_law_encoding(band / peak, LEVELS), LEVELS)


ALONE: tuple[Disturbance, ...] = (noise, room, narrow_band)
DISTURBANCES = (*ALONE, babble)


def disturb_speech(
    speech: Tensor, lengths: Tensor, probability: float, rate: int
) -> Tensor:
    """Return a batch of which some utterances are disturbed, each in one way.

    Args:
        speech: (batch, samples), silent after each utterance
        lengths: number of samples of each utterance, (batch,)
        probability: of an utterance to be disturbed
        rate: samples a second

    Raises:
        ValueError: audio of several channels
    """
    if speech.dim() != 2:
        raise ValueError(
            f"disturb_probability: speech has the shape {tuple(speech.shape)}; expected "
            "(batch, samples), with one channel. Set it to 0 for other audio."
        )
    waves = [wave[:n] for wave, n in zip(speech, lengths.tolist(), strict=True)]
    disturbed = speech.clone()
    for i, wave in enumerate(waves):
        if float(torch.rand(())) < probability and bool(wave.any()):
            others = [other for j, other in enumerate(waves) if j != i]
            kinds = DISTURBANCES if others else ALONE
            change = kinds[int(torch.randint(len(kinds), ()))]
            disturbed[i, : len(wave)] = change(wave, others, rate)
    return disturbed

"""These are the features that sherpa-onnx computes for models of the kind Dolphin.

They are nearly those of ESPnet's default front end. They have a pre-emphasis and a window
of 500 samples, which add about a constant to each feature; and each frame begins half a
step later.
"""

import torch
from torch import Tensor, nn

RATE, SHIFT, WINDOW, N_FFT, N_MELS = 16_000, 160, 500, 512, 80
PREEMPHASIS, FLOOR = 0.97, torch.finfo(torch.float32).eps
# Of the noise with which the front ends are compared
SECONDS, AMPLITUDE, EDGE = 30, 0.1, 5


def fbank(wave: Tensor, mel: Tensor) -> Tensor:
    """Return what sherpa-onnx 2.0 computes of a waveform, before it is normalized.

    It says so in offline-recognizer-ctc-impl.h, offline-stream.cc, and in the library
    kaldi-native-fbank.

    Args:
        wave: (samples,), between -1 and 1, at 16 kHz
        mel: power to mel bands, (257, 80), as librosa has it

    Returns:
        log-mel features, (frames, 80)
    """
    samples = len(wave)
    starts = torch.arange((samples + SHIFT // 2) // SHIFT) * SHIFT
    places = starts[:, None] + (SHIFT - WINDOW) // 2 + torch.arange(WINDOW)
    places %= 2 * samples  # beyond its ends the waveform is mirrored
    frames = wave[torch.where(places < samples, places, 2 * samples - 1 - places)]
    before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
    window = torch.hann_window(WINDOW, dtype=wave.dtype)
    spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * window, N_FFT)
    return (spectrum.abs().square() @ mel.to(wave)).clamp(min=FLOOR).log()


@torch.no_grad()
def offset_from(frontend: nn.Module) -> Tensor:
    """Return by how much each feature of sherpa-onnx's is above ESPnet's.

    It is measured on white noise. In the lowest bands, which hold no speech, it is
    further from that on speech, as the windows let some of the neighbouring bands in.

    Args:
        frontend: ESPnet's default front end, with 80 mel bands and a step of 160 samples

    Returns:
        the mean difference of each feature, (80,)
    """
    generator = torch.Generator().manual_seed(0)
    wave = AMPLITUDE * torch.randn(SECONDS * RATE, generator=generator)
    theirs, _ = frontend(wave[None], torch.tensor([len(wave)]))
    ours = fbank(wave.double(), frontend.logmel.melmat)
    inside = slice(EDGE, len(ours) - EDGE)
    return (ours[inside] - theirs[0, inside].double()).mean(0).float()

"""What an ESPnet model reads: audio, features, or the tokens of another language."""

import math

import torch
from torch import Tensor, nn

from espnet_l0prune.networks.espnet_modules import TOKEN_FRONTENDS
from espnet_l0prune.networks.whisper import reads_waveform

FRAMES_A_SECOND = 100  # assumed for a model that reads features
TOKENS_A_SECOND = 50  # as self-supervised models make of speech, before any are merged
SAMPLE_RATE = 16_000  # in Hz, for a front end that is not told another one


def reads_tokens(model: nn.Module) -> bool:
    """Return whether a model's front end looks up tokens, as in ESPnet's mt task."""
    return isinstance(model.frontend, TOKEN_FRONTENDS)


def reads_audio(model: nn.Module) -> bool:
    """Return whether a model reads audio, (batch, samples)."""
    if reads_waveform(model.encoder):
        return True
    return model.frontend is not None and not reads_tokens(model)


def rate_of(model: nn.Module) -> int:
    """Return how many samples, frames or tokens a model reads in a second of speech."""
    if reads_audio(model):
        return getattr(model, "sample_rate", SAMPLE_RATE)
    return TOKENS_A_SECOND if reads_tokens(model) else FRAMES_A_SECOND


def length_of(model: nn.Module, seconds: float) -> int:
    """Return how many samples, frames or tokens a model reads in some seconds of speech.

    A front end that joins tokens takes a multiple of them.
    """
    patch = getattr(model, "patch_size", 1)  # mt models have one
    return math.ceil(int(seconds * rate_of(model)) / patch) * patch


def input_size_of(model: nn.Module) -> int:
    """Return the number of features that a model without a front end reads."""
    return getattr(model, "input_size", None) or model.encoder.input_size


def has_prompt(model: nn.Module) -> bool:
    """Return whether a model's encoder attends to a prompt, as that of OWSM-CTC does."""
    return hasattr(model, "prompt_encoder")


def prompt(model: nn.Module) -> dict[str, Tensor]:
    """Return what `model.encode` takes beside speech, for an utterance without a prompt.

    That is `text_prev` and `prefix` for OWSM-CTC, or a transcript for a postdecoder, each
    with its lengths.
    """
    device = next(model.parameters()).device
    if getattr(model, "postdecoder", None) is not None:
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        return {"transcript_pad": token, "transcript_pad_lens": token[0] + 1}
    if not has_prompt(model):
        return {}
    found = {"text_prev": [[model.na]], "prefix": [[model.na, model.na]]}
    tokens = {k: torch.tensor(v, device=device) for k, v in found.items()}
    return tokens | {
        f"{name}_lengths": torch.tensor([value.size(1)], device=device)
        for name, value in tokens.items()
    }


def silence(model: nn.Module, seconds: float) -> Tensor:
    """Return silence: (1, samples), (1, frames, size), or (1, tokens), of one token."""
    like = next(model.parameters())
    length = length_of(model, seconds)
    shape = (1, length) if reads_audio(model) else (1, length, input_size_of(model))
    if reads_tokens(model):
        return torch.zeros(1, length, dtype=torch.long, device=like.device)
    return torch.zeros(shape, dtype=like.dtype, device=like.device)

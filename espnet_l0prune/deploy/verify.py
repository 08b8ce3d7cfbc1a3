"""This check tells whether two models compute the same."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet_l0prune.core.sites import Site
from espnet_l0prune.networks.espnet_modules import (
    BaseTransformerDecoder,
    OpenAIWhisperDecoder,
)
from espnet_l0prune.networks.s3prl import in_own_type
from espnet_l0prune.networks.sites import layers_of
from espnet_l0prune.networks.speakers import one_after_another
from espnet_l0prune.networks.streaming import frames_of_blocks
from espnet_l0prune.networks.transducer import (
    chunks_fixed,
    encode_chunks,
    reads_chunks,
)
from espnet_l0prune.networks.whisper import (
    encode_waveform,
    exact,
    reads_waveform,
)
from espnet_l0prune.plugin.counting import evaluation
from espnet_l0prune.plugin.heads import after_encoder, is_multi_decoder
from espnet_l0prune.plugin.inputs import has_prompt

TOLERANCE = 1e-10  # in float64, relative to the output's largest magnitude
ROUNDED = 1e-7  # the tolerance where weights in float32 were scaled
REPORT = "Nothing was written: please report this with the experiment's config.yaml."
TOKENS = 9  # number of tokens that the decoder reads
LENGTHS = (200, 131, 64, 31)  # frames of features
BLOCKS, LONGEST = 5, 2000  # of a streaming encoder; frames of features, at most
CHUNK = 50  # frames of features that are read at a time
STEP = 160  # samples of a frame, for what reads audio
Outputs = Mapping[torch.dtype, Mapping[str, Tensor]]


@dataclass
class Difference:
    """A `Difference` is that of two outputs at most, relative to the largest output."""

    float64: float
    float32: float

    def __str__(self) -> str:
        return (
            f"{self.float64:.1e} in float64, {self.float32:.1e} in float32, of the "
            "output's scale"
        )


def probe_of(encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Return random input in float64 for an encoder, and its lengths; see `probe`.

    A streaming encoder has so many frames that it reads some blocks of them.
    """
    if reads_waveform(encoder):
        waves, frames = probe(STEP)
        return waves.flatten(1), frames * STEP
    longest = min(max(frames_of_blocks(encoder, BLOCKS), LENGTHS[0]), LONGEST)
    return probe(encoder.input_size, (longest, *LENGTHS[1:]))


def probe(
    input_size: int, lengths: tuple[int, ...] = LENGTHS, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return random features (batch, time, input_size) in float64, unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    shape = len(lengths), max(lengths), input_size
    return torch.randn(shape, generator=generator).double(), torch.tensor(lengths)


@torch.no_grad()
def outputs(model: nn.Module) -> Outputs:
    """Return a model's outputs for the probe, in float64 and in float32.

    The model must be in float32 and on the CPU. Its encoder and its decoder are converted
    in turn and converted back, which needs no second copy of a big model, and loses no
    digit.

    Returns:
        for each type, the encoder's valid frames (frames, size); if the decoder is a
        Transformer's, its logits (batch, tokens, vocabulary), see `decode`; and those of
        a self-supervised model as front end, (frames, size)
    """
    with evaluation(model):
        return {dtype: _outputs(model, dtype) for dtype in (torch.float64, torch.float32)}


@contextmanager
def _converted(dtype: torch.dtype, *modules: nn.Module | None) -> Iterator[None]:
    present = [module for module in modules if module is not None]
    try:
        for module in present:
            module.to(dtype)
        yield
    finally:
        for module in present:
            module.to(torch.float32)


def encode(model: nn.Module, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the encoder's outputs (batch, frames, size) and their lengths (batch,).

    The encoder is called as ESPnet's model does; intermediate CTC's outputs are left out.

    Args:
        model: ESPnet's model
        feats: (batch, time, input_size), or audio (batch, samples)
        lengths: number of valid frames, (batch,)
    """
    if reads_waveform(model.encoder):
        return encode_waveform(model.encoder, feats, lengths)
    needs = ("interctc_use_conditioning", "ctc_trim")
    with_ctc = any(getattr(model.encoder, name, False) for name in needs)
    more = {"ctc": model.ctc} if with_ctc else {}
    if has_prompt(model):
        more |= random_prompt(model.encoder.output_size(), feats)
    with chunks_fixed(model.encoder):
        output, valid = model.encoder(feats, lengths, **more)[:2]
    output = output[0] if isinstance(output, tuple) else output
    return one_after_another(output, valid)


def random_prompt(size: int, feats: Tensor) -> dict[str, Tensor]:
    """Return what OWSM-CTC's encoder reads beside features (batch, time, input_size).

    That is the prompt, encoded, (batch, tokens, size), with its mask, and the embeddings
    of language and task, (batch, 2, size).
    """
    generator, batch = torch.Generator().manual_seed(1), len(feats)
    memory, prefix = (
        torch.randn(batch, tokens, size, generator=generator, dtype=torch.float64)
        for tokens in (TOKENS, 2)
    )
    mask = torch.ones(batch, 1, TOKENS, dtype=torch.bool)
    memory, prefix = memory.to(feats), prefix.to(feats)
    return {"memory": memory, "memory_mask": mask, "prefix_embeds": prefix}


def _outputs(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    feats, lengths = probe_of(model.encoder)
    with _converted(dtype, model.encoder, model.ctc):
        feats = feats.to(dtype)
        output, valid = encode(model, feats, lengths)
        by_part = {"encoder": _valid(output, valid)}
        if reads_chunks(model.encoder):
            chunks = encode_chunks(model.encoder, feats[:1], CHUNK)
            by_part["encoder in chunks"] = chunks
    if layers_of(model.frontend):
        waves, frames = probe(STEP)
        with _converted(dtype, model.frontend), in_own_type(model.frontend):
            heard = model.frontend(waves.flatten(1).to(dtype), frames * STEP)
        by_part["frontend"] = _valid(*heard)
    attends = isinstance(model.decoder, (BaseTransformerDecoder, OpenAIWhisperDecoder))
    if attends and not is_multi_decoder(model):
        tokens = torch.arange(len(valid) * TOKENS).view(-1, TOKENS) % model.vocab_size
        counts = torch.full((len(valid),), TOKENS)
        memory = output
        if parts := after_encoder(model):  # they are not run: the decoder reads noise
            generator = torch.Generator().manual_seed(2)
            shape = *output.shape[:2], parts[-1].output_size()
            memory = torch.randn(shape, generator=generator).to(dtype)
        with _converted(dtype, model.decoder):
            by_part["decoder"] = decode(model.decoder, memory, valid, tokens, counts)
    return by_part


def _valid(output: Tensor, lengths: Tensor) -> Tensor:
    """Return the valid frames (frames, size) of (batch, frames, size)."""
    return output[torch.arange(output.size(1)) < lengths[:, None]]


def decode(decoder: nn.Module, *args: Tensor) -> Tensor:
    """Return an attention decoder's scores, (batch, tokens, vocabulary).

    Whisper's rounds them to float32, so that they are computed here from its last states.

    Args:
        decoder: ESPnet's decoder
        args: the encoder's output (batch, frames, size), the lengths (batch,), the tokens
            (batch, tokens), and their numbers (batch,)
    """
    if not isinstance(decoder, OpenAIWhisperDecoder):
        return decoder(*args)[0]
    layers, states = decoder.decoders, list[Tensor]()
    hook = layers.ln.register_forward_hook(lambda *call: states.append(call[-1]))
    try:
        with exact(decoder):
            decoder(*args)
    finally:
        hook.remove()
    return states[0] @ layers.token_embedding.weight.T


def difference_of(one: Outputs, two: Outputs) -> Difference:
    """Return the difference of two models' outputs.

    Raises:
        ValueError: outputs of different shapes
    """
    largest = {}
    for dtype in (torch.float64, torch.float32):
        differences = []
        for name, a in one[dtype].items():
            b = two[dtype].get(name)
            if b is None or a.shape != b.shape:
                raise ValueError(
                    f"the outputs of the {name} have shapes {tuple(a.shape)} and "
                    f"{None if b is None else tuple(b.shape)}; expected two forms of "
                    "one model, such as a gated experiment and its cut"
                )
            differences.append(float((a - b).abs().max() / a.abs().max()))
        largest[dtype] = max(differences, key=lambda d: (d != d, d))  # NaN above all
    return Difference(largest[torch.float64], largest[torch.float32])


def tolerance_of(sites: Iterable[Site]) -> float:
    """Return how far a network with gates may be from its cut.

    It is a difference in float64, relative to the output's scale.
    """
    rounded = any(
        not bool(gate.is_open().all())
        for site in sites
        for kind, gate in site.gates.items()
        if kind in site.scaled
    )
    return ROUNDED if rounded else TOLERANCE


def require_equal(
    difference: Difference, tolerance: float = TOLERANCE, remedy: str = REPORT
) -> None:
    """Raise ValueError where two models differ by more than `tolerance` in float64."""
    if not difference.float64 <= tolerance:  # NaN is refused too
        raise ValueError(
            f"the two networks differ by {difference.float64:.1e} of the output's scale "
            f"in float64; expected at most {tolerance:.0e}. {remedy}"
        )

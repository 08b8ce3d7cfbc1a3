"""A recognizer has four parts that onnxruntime can run, and that torch exports.

These are front end, encoder, CTC, and a step of the decoder.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from espnet_l0prune.deploy.verify import encode, probe
from espnet_l0prune.networks.espnet_modules import check_short_utt

FRAMES = 200  # number of frames of the exported example
HYPOTHESES = 3  # number of hypotheses of a beam search


class Graph(nn.Module):
    """A `Graph` is a part of a recognizer that is exported.

    Attributes:
        varying: names of its inputs, with the dimensions that may have any size
        outputs: names of its outputs
        file: the file's name
        text: what the file computes, for the model card
    """

    varying: ClassVar[dict[str, dict[int, str]]]
    outputs: ClassVar[tuple[str, ...]]
    file: ClassVar[str]
    text: ClassVar[str]

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def example(self, frames: int) -> tuple[Tensor, ...]:
        """Return random inputs of some length."""
        raise NotImplementedError


class FrontendGraph(Graph):
    """This graph is the front end, including normalization."""

    varying = {"speech": {1: "samples"}}
    outputs, file = ("feats",), "frontend.onnx"
    text = "`speech` (1, samples) to normalized `feats` (1, frames, features)."

    def example(self, frames: int) -> tuple[Tensor]:
        stft = self.model.frontend.stft
        samples = max(stft.hop_length * frames, stft.n_fft)  # it reads half of this
        return (0.1 * torch.randn(1, samples),)

    def forward(self, speech: Tensor) -> Tensor:
        # ESPnet's forward reads the values of lengths, so its parts are called one by one
        spectrum, _ = self.model.frontend.stft(speech)
        feats, _ = self.model.frontend.logmel(spectrum.square().sum(-1))
        if self.model.normalize is not None:
            feats, _ = self.model.normalize(feats, whole(feats))
        return feats


class EncoderGraph(Graph):
    """This graph is the encoder."""

    varying = {"feats": {1: "frames"}}
    outputs, file = ("encoder_out",), "encoder.onnx"
    text = "`feats` (1, frames, features) to `encoder_out` (1, frames left, size)."

    def example(self, frames: int) -> tuple[Tensor]:
        return (probe(self.model.encoder.input_size, (frames,))[0].float(),)

    def forward(self, feats: Tensor) -> Tensor:
        return encode(self.model, feats, whole(feats))[0]


class CTCGraph(Graph):
    """This graph is the CTC head."""

    varying = {"encoder_out": {0: "batch", 1: "frames"}}
    outputs, file = ("logp",), "ctc.onnx"
    text = "`encoder_out` (batch, frames, size) to `logp` (batch, frames, tokens)."

    def example(self, frames: int) -> tuple[Tensor]:
        size = HYPOTHESES, 1 + frames // 4, self.model.encoder.output_size()
        return (torch.randn(size),)

    def forward(self, encoder_out: Tensor) -> Tensor:
        return self.model.ctc.log_softmax(encoder_out)


class DecoderGraph(Graph):
    """This graph is a step of an attention decoder.

    Each call takes the cache that the one before returned; the first call's has length 0.
    """

    varying = {
        "ys": {0: "batch", 1: "length"},
        "memory": {0: "batch", 1: "frames"},
        "cache": {1: "batch", 2: "length_before"},
    }
    outputs, file = ("logp", "new_cache"), "decoder.onnx"
    text = (
        "`ys` (batch, length), `memory` (batch, frames, size) and `cache` (blocks, "
        "batch, length - 1, width) to `logp` (batch, tokens) of the next token, and "
        "`new_cache`. Each call takes the cache that the one before gave; the first one "
        "of length 0."
    )

    def example(self, frames: int) -> tuple[Tensor, Tensor, Tensor]:
        memory = torch.randn(HYPOTHESES, frames, self.model.encoder.output_size())
        ys = torch.randint(self.model.vocab_size, (HYPOTHESES, 1 + frames // 10))
        width = self.model.decoder.embed(ys).size(-1)
        blocks = len(self.model.decoder.decoders)
        return ys, memory, torch.randn(blocks, HYPOTHESES, ys.size(1) - 1, width)

    def forward(self, ys: Tensor, memory: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.ones(ys.size(1), ys.size(1), dtype=torch.bool).tril()[None]
        step = self.model.decoder.forward_one_step
        logp, new = step(ys, mask, memory, cache=[*cache])
        return logp, torch.stack(new)


def whole(feats: Tensor) -> Tensor:
    """Return the length of one utterance without padding, as a tensor of the graph."""
    return torch.ones(1, dtype=torch.long) * feats.size(1)


def shortest(encoder: nn.Module) -> int:
    """Return the fewest frames that an encoder of ESPnet's takes."""
    _, fewest = check_short_utt(getattr(encoder, "embed", None), 0)
    return max(fewest, 1)

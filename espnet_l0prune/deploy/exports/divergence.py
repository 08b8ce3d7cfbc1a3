"""How far apart the outputs of two recognizers are, in float32."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from espnet_l0prune.deploy.exports.graphs import FRAMES, HYPOTHESES, shortest
from espnet_l0prune.deploy.verify import encode, probe
from espnet_l0prune.networks.espnet_modules import BatchScorerInterface

OTHER_FRAMES = (31, 2 * FRAMES + 1, 10 * FRAMES)  # of those that are compared, and the
# fewest that an encoder takes
STEPS = 5  # of a beam search


def distance(a: Tensor, b: Tensor, absolute: bool) -> float:
    """The largest difference; of the larger values' scale, or absolute.

    NaN where shapes differ, or anything is NaN.
    """
    if a.shape != b.shape:
        return math.nan
    apart = (a - b).abs().max()
    return float(apart if absolute else apart / a.abs().max().clamp(min=1))


def divergence(a: Tensor, b: Tensor, distributions: bool) -> float:
    """How far `b` is from `a` on the mean: of distributions, given as log-probabilities,
    the Kullback-Leibler divergence in nats; else the square of what differs, of that of
    `a`.

    NaN where shapes differ, or anything is NaN.
    """
    if a.shape != b.shape:
        return math.nan
    if distributions:
        return float((a.exp() * (a - b)).sum(-1).mean())
    return float((a - b).square().sum() / a.square().sum())


@torch.no_grad()
def furthest(
    one: nn.Module, two: nn.Module, measure: Callable[[Tensor, Tensor, bool], float]
) -> float:
    """The largest of what `distance` or `divergence` finds between two models, in
    float32: of the encoder's output, and of the log-probabilities of CTC and of an
    attention decoder; NaN above all.

    For random features of some lengths; the decoder makes some steps, as a beam search
    asks for them.
    """
    apart: list[float] = []
    for frames in (shortest(one.encoder), FRAMES, *OTHER_FRAMES):
        feats, lengths = probe(one.encoder.input_size, (frames,), seed=frames)
        pairs = zip(*(_found(m, feats.float(), lengths) for m in (one, two)), strict=True)
        apart += [measure(a, b, is_logp) for (a, is_logp), (b, _) in pairs]
    return max(apart, key=lambda d: (d != d, d))


def _found(
    model: nn.Module, feats: Tensor, lengths: Tensor
) -> Iterator[tuple[Tensor, bool]]:
    """What a model computes, and whether that is log-probabilities."""
    memory, _ = encode(model, feats, lengths)
    yield memory, False
    if model.ctc is not None:
        yield model.ctc.log_softmax(memory), True
    if isinstance(model.decoder, BatchScorerInterface):
        ys = torch.arange(HYPOTHESES * STEPS).view(HYPOTHESES, -1) % model.vocab_size
        states, many = [None] * HYPOTHESES, memory.expand(HYPOTHESES, -1, -1)
        for length in range(1, STEPS + 1):
            logp, states = model.decoder.batch_score(ys[:, :length], states, many)
            yield logp, True

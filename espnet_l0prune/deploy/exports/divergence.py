"""These measures tell how far apart the outputs of two recognizers are, in float32."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from espnet_l0prune.deploy.exports.graphs import FRAMES, HYPOTHESES, shortest
from espnet_l0prune.deploy.verify import encode, probe
from espnet_l0prune.networks.espnet_modules import BatchScorerInterface

# lengths to compare, in addition to FRAMES and to the fewest that an encoder takes
OTHER_FRAMES = (31, 2 * FRAMES + 1, 10 * FRAMES)
STEPS = 5  # number of steps of a beam search


def distance(a: Tensor, b: Tensor, absolute: bool) -> float:
    """Return the largest difference, either absolute or relative to the largest value.

    It is NaN where shapes differ or a value is NaN; a largest value below 1 counts as 1.
    """
    if a.shape != b.shape:
        return math.nan
    apart = (a - b).abs().max()
    return float(apart if absolute else apart / a.abs().max().clamp(min=1))


def divergence(a: Tensor, b: Tensor, distributions: bool) -> float:
    """Return how far `b` is from `a` on the mean.

    For distributions, given as log-probabilities, it is the Kullback-Leibler divergence
    in nats; otherwise it is the squared difference, relative to the square of `a`. It is
    NaN where shapes differ or a value is NaN.
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
    """Return how far apart two models are at most, over all their outputs, in float32.

    The outputs are the encoder's, and the log-probabilities of CTC and of an attention
    decoder, for random features of some lengths; the decoder makes some steps, as in a
    beam search. NaN counts as largest.

    Args:
        one, two: ESPnet's models
        measure: `distance` or `divergence`
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
    """Yield a model's outputs, each with whether it holds log-probabilities."""
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

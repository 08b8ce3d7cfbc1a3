"""A confidence interval says how certain the errors are that pruning costs."""

import numpy as np
from scipy.stats import bootstrap


def wer_difference_interval(
    errors: np.ndarray, others: np.ndarray, words: np.ndarray, draws: int = 10_000
) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the difference of two models' WER.

    Whole utterances are drawn, the same ones for both models, because words of an
    utterance fail together, and utterances that are hard for one model are hard for the
    other. The seed is fixed. A single utterance says nothing about others, so that its
    interval has no width. See Bisani and Ney, "Bootstrap estimates for confidence
    intervals in ASR performance evaluation" (ICASSP 2004).

    Args:
        errors: insertions, deletions and substitutions in each utterance, (utterances,)
        others: those of the model to compare with, (utterances,)
        words: words in the reference of each utterance, at least one, (utterances,)
        draws: number of draws, each of as many utterances as there are

    Returns:
        low and high end of (sum of errors - sum of others) / (sum of words), as shares
    """
    extra = errors - others
    if len(words) == 1:
        return (extra / words).item(), (extra / words).item()

    def difference(extra: np.ndarray, words: np.ndarray, axis: int) -> np.ndarray:
        return extra.sum(axis) / words.sum(axis)

    result = bootstrap(
        (extra, words),
        difference,
        n_resamples=draws,
        batch=100,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return float(low), float(high)

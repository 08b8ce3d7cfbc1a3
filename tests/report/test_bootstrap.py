"""Intervals of a difference of WER, beside what statistics knows of them."""

import warnings

import numpy as np
import pytest
from scipy.stats import norm

from espnet_l0prune.report.bootstrap import wer_difference_interval


def test_many_utterances_have_the_interval_of_a_normal_distribution():
    """That of a ratio of sums by its linearization (the delta method)."""
    random = np.random.default_rng(0)
    words = random.integers(1, 40, 2000)
    hard = random.gamma(2, 0.5, 2000)  # for both of the models
    others = random.poisson(0.1 * hard * words)
    errors = random.poisson(0.12 * hard * words)
    rate = (errors - others).sum() / words.sum()
    deviation = np.std(errors - others - rate * words) / (np.sqrt(2000) * words.mean())
    expected = norm(rate, deviation).interval(0.95)
    found = wer_difference_interval(errors, others, words)
    assert found == pytest.approx(expected, abs=0.05 * deviation)
    assert found == wer_difference_interval(errors, others, words)


def test_whoever_is_compared_with_whom():
    random = np.random.default_rng(1)
    words, errors, others = random.integers(1, 9, (3, 50))
    low, high = wer_difference_interval(errors, others, words)
    assert (-high, -low) == pytest.approx(wer_difference_interval(others, errors, words))


@pytest.mark.parametrize(
    ("errors", "others", "words", "expected"),
    [
        ([2], [1], [4], 0.25),  # one utterance
        ([2, 2, 2], [1, 1, 1], [4, 4, 4], 0.25),  # the same ones
        ([0, 3, 1], [0, 3, 1], [2, 5, 9], 0.0),  # two models that are one
    ],
)
def test_where_nothing_varies_the_interval_has_no_width(errors, others, words, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = wer_difference_interval(*map(np.array, (errors, others, words)))
    assert found == pytest.approx((expected, expected))

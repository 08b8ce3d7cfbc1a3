"""What is done to speech is what the words say, and nothing else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_l0prune.core import disturbance
from espnet_l0prune.core.disturbance import (
    BABBLE_RATIO,
    DISTURBANCES,
    NOISE_RATIO,
    babble,
    disturb_speech,
    narrow_band,
    noise,
    room,
)

RATE = 16_000


def speech(*lengths: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    waves = torch.randn(len(lengths), max(lengths), dtype=dtype) / 10
    for wave, n in zip(waves, lengths, strict=True):
        wave[n:] = 0
    return waves, torch.tensor(lengths)


def ratio(wave: torch.Tensor, heard: torch.Tensor) -> float:
    """Of the signal to what was added, in dB."""
    return float(20 * torch.log10(wave.norm() / (heard - wave).norm()))


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    silent=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_lengths_and_padding_stay(lengths, silent, double, seed):
    torch.manual_seed(seed)
    waves, counts = speech(*lengths, dtype=torch.float64 if double else torch.float32)
    waves[0] *= not silent
    before = waves.clone()
    heard = disturb_speech(waves, counts, 1.0, RATE)
    assert heard.shape == waves.shape
    assert heard.dtype == waves.dtype
    assert bool(heard.isfinite().all())
    assert torch.equal(waves, before)
    for wave, n in zip(heard, lengths, strict=True):
        assert not bool(wave[n:].any())
    if silent:
        assert not bool(heard[0].any())
    torch.manual_seed(seed)
    speech(*lengths, dtype=waves.dtype)
    assert torch.equal(disturb_speech(waves, counts, 1.0, RATE), heard)


def test_as_many_are_disturbed_as_the_probability_says():
    torch.manual_seed(0)
    waves, counts = speech(*[300] * 1000)
    assert torch.equal(disturb_speech(waves, counts, 0.0, RATE), waves)
    same = (disturb_speech(waves, counts, 0.3, RATE) == waves).all(1)
    assert int(same.sum()) == pytest.approx(700, abs=50)
    assert not bool((disturb_speech(waves, counts, 1.0, RATE) == waves).all(1).any())


def test_each_kind_is_drawn(monkeypatch):
    torch.manual_seed(0)
    seen = []
    marked = [
        lambda wave, others, rate, i=i: seen.append(i) or wave
        for i in range(len(DISTURBANCES))
    ]
    monkeypatch.setattr(disturbance, "DISTURBANCES", marked)
    disturb_speech(*speech(*[10] * 200), 1.0, RATE)
    assert {*seen} == {*range(len(DISTURBANCES))}
    assert len(seen) == 200


def test_noise_is_as_loud_as_its_ratio_and_has_a_slope():
    torch.manual_seed(0)
    wave = torch.randn(RATE)
    ratios, slopes = [], []
    frequencies = torch.arange(100, 7000)
    for _ in range(200):
        heard = noise(wave, [], RATE)
        ratios.append(ratio(wave, heard))
        power = torch.fft.rfft(heard - wave)[frequencies].abs().square().log()
        x = frequencies.log()
        x = x - x.mean()
        slopes.append(-float((x * power).sum() / x.square().sum()))
    for found, (low, high) in ((ratios, NOISE_RATIO), (slopes, disturbance.SLOPES)):
        assert low - 0.1 < min(found) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(found) < high + 0.1


def test_babble_is_what_others_say():
    torch.manual_seed(0)
    wave, other = torch.randn(4000), torch.randn(1000)
    for _ in range(20):
        heard = babble(wave, [other], RATE)
        assert BABBLE_RATIO[0] - 0.01 < ratio(wave, heard) < BABBLE_RATIO[1] + 0.01
        added = heard - wave
        assert torch.allclose(added[:1000], added[1000:2000], atol=1e-5)  # it goes round
        spectra = (torch.fft.rfft(x).abs() for x in (added[:1000], other))
        one, two = (x / x.norm() for x in spectra)
        assert torch.allclose(one, two, atol=1e-4)
    assert torch.equal(babble(wave, [], RATE), wave)
    assert torch.equal(babble(wave, [torch.zeros(10)], RATE), wave)


def test_a_room_echoes_after_the_sound():
    torch.manual_seed(0)
    click = torch.zeros(RATE)
    click[100] = 1
    heard = room(click, [], RATE)
    assert heard[:100].abs().max() < 1e-5
    assert heard[100] == pytest.approx(1, abs=1e-4)
    parts = heard[101:].square()
    assert 0.06 < float(parts.sum()) < 1.01  # 12 to 0 dB below the sound
    assert parts[:800].sum() > parts[800:1600].sum()


def test_a_narrow_band_has_no_other_frequencies():
    torch.manual_seed(0)
    wave = torch.randn(RATE)
    heard = torch.fft.rfft(narrow_band(wave, [], RATE)).abs().square()
    inside = heard[400:1500].mean()
    assert heard[:40].mean() < inside / 100  # what is left comes from rounding the levels
    assert heard[4100:].mean() < inside / 100
    few = narrow_band(wave, [], RATE).unique()
    assert len(few) <= disturbance.LEVELS


def test_several_channels_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 9, 3\); expected \(batch, sampl"):
        disturb_speech(torch.randn(2, 9, 3), torch.tensor([9, 9]), 1.0, RATE)


def test_a_rate_so_low_that_the_room_has_no_echo():
    assert math.isfinite(float(room(torch.ones(5), [], 1).sum()))

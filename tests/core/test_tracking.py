"""What is said of the way that the expected sparsity took."""

import pytest

from espnet_l0prune.core.tracking import Tracking


def said(*shortfalls: float, phase: str = "hold", equality: bool = True) -> str | None:
    tracking = Tracking(equality)
    for shortfall in shortfalls:
        tracking.add(shortfall)
    return tracking.remedy(phase)


@pytest.mark.parametrize("phase", ["ramp", "hold"])
def test_one_that_swings(phase):
    text = said(0.5, 0.2, -0.03, -0.2, 0.02, 0.07, 0.01, phase=phase)
    assert "swings around its target: it crossed it 2 times in 7 updates, and" in text
    assert "was up to 0.200 away. Lower multiplier_lr" in text


@pytest.mark.parametrize(
    "way",
    [
        (0.5, 0.3, 0.1, 0.01),  # it comes to its target
        (0.5, -0.06, -0.04),  # crosses it once
        (0.5, -0.03, 0.04, -0.04),  # swings a little
        (-0.3, 0.01, -0.01, 0.01),  # swings a little, after what was far off
        (),
    ],
)
def test_one_that_is_well(way):
    assert said(*way) is None


@pytest.mark.parametrize("way", [(0.01, 0.02, 0.06), (-0.06,)])
def test_one_that_ends_away_from_a_target_that_stands(way):
    assert f"is {way[-1]:.3f} from its target, which no longer rises" in said(*way)
    assert said(*way, phase="ramp") is None


def test_more_than_an_inequality_asks_for_is_no_swing():
    assert said(0.01, -0.5, 0.01, -0.5, equality=False) is None
    text = said(0.01, -0.5, 0.07, -0.5, equality=False)  # but this is
    assert "crossed it 3 times in 4 updates, and was up to 0.070 away" in text

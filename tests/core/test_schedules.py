import inspect

import pytest

from espnet_l0prune.core.schedules import (
    SCHEDULERS,
    ConstantSparsityScheduler,
    CosineSparsityScheduler,
    CubicSparsityScheduler,
    ExponentialSparsityScheduler,
    LinearSparsityScheduler,
    StaircaseSparsityScheduler,
)


def test_an_option_has_one_default():
    expected = {"in_epochs": False, "warmup_steps": 1000, "start": 0.0}
    for scheduler in SCHEDULERS.values():
        found = {k: p.default for k, p in inspect.signature(scheduler).parameters.items()}
        for option, default in found.items():
            assert expected.setdefault(option, default) == default, (scheduler, option)


def test_phases_and_target():
    s = LinearSparsityScheduler(start=0.2, warmup_steps=2, ramp_steps=4, hold_steps=3)
    assert [s.phase(i) for i in range(11)] == (
        ["warmup"] * 2 + ["ramp"] * 4 + ["hold"] * 3 + ["frozen"] * 2
    )
    expected = [0, 0, 0.2, 0.3, 0.4, 0.5] + [0.6] * 5
    assert [s.targets(i, {"params": 0.6})["params"] for i in range(11)] == pytest.approx(
        expected
    )


def test_no_ramp_is_a_step():
    s = LinearSparsityScheduler(warmup_steps=1, ramp_steps=0, hold_steps=1)
    assert [s.targets(i, {"params": 0.5}) for i in range(3)] == [
        {"params": 0},
        {"params": 0.5},
        {"params": 0.5},
    ]


def test_each_cost_has_a_target_of_its_own():
    target = {"params": 0.4, "macs": 0.6}
    s = LinearSparsityScheduler(warmup_steps=0, ramp_steps=2, hold_steps=1)
    assert s.targets(1, target) == {"params": 0.2, "macs": 0.3}
    assert s.targets(2, target) == target


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"warmup_steps": -1}, r"warmup_steps is -1; expected a number in \[0, "),
        (
            {"ramp_steps": 1.5},
            "ramp_steps is 1.5; expected a whole number of updates, or in",
        ),
        ({"ramp_steps": 0, "hold_steps": 0}, "both 0"),
    ],
)
def test_bad_options(conf, message):
    with pytest.raises(ValueError, match=message):
        LinearSparsityScheduler(**conf)


SHAPES = {
    ConstantSparsityScheduler: [0.8, 0.8, 0.8, 0.8],
    LinearSparsityScheduler: [0, 0.2, 0.4, 0.6],
    CubicSparsityScheduler: [0, 0.8 * 37 / 64, 0.8 * 7 / 8, 0.8 * 63 / 64],
    CosineSparsityScheduler: [0, 0.4 - 0.2 * 2**0.5, 0.4, 0.4 + 0.2 * 2**0.5],
    ExponentialSparsityScheduler: [1 - 0.2 ** (i / 4) for i in range(4)],
    StaircaseSparsityScheduler: [0.4, 0.4, 0.8, 0.8],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_ramps_shape(shape):
    conf = {"warmup_steps": 2, "ramp_steps": 4, "hold_steps": 1}
    more = {"stairs": 2} if shape is StaircaseSparsityScheduler else {}
    scheduler = shape(**conf, **more)
    found = [scheduler.targets(i, {"params": 0.8})["params"] for i in range(9)]
    assert found == pytest.approx([0, 0, *SHAPES[shape], 0.8, 0.8, 0.8])
    assert found == sorted(found)


def test_stairs():
    with pytest.raises(ValueError, match="stairs is 0; expected a whole number"):
        StaircaseSparsityScheduler(stairs=0)
    two, five = (StaircaseSparsityScheduler(stairs=n) for n in (2, 5))
    assert two.settings != five.settings

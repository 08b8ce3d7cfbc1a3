import inspect

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

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


# Milestones


@st.composite
def with_milestones(draw):
    """A schedule with milestones, and the options that make it."""
    shares = draw(st.sets(st.integers(2, 95), min_size=1, max_size=5))
    options = {
        "warmup_steps": draw(st.integers(0, 5)),
        "ramp_steps": draw(st.integers(6, 60)),
        "hold_steps": draw(st.integers(1, 6)),
        "start": draw(st.sampled_from([0.0, 0.01])),
    }
    kind = draw(st.sampled_from(list(SCHEDULERS.values())))
    if kind is StaircaseSparsityScheduler:
        options["stairs"] = draw(st.integers(1, 8))
    try:
        scheduler = kind(**options, milestones=[share / 100 for share in sorted(shares)])
    except ValueError:  # the ramp ends with the step that reaches some of them
        reject()
    return scheduler, options


@given(with_milestones(), st.data())
def test_the_ramp_pauses_at_milestones_and_is_otherwise_as_without(made, data):
    scheduler, options = made
    final = {"params": scheduler.milestones[-1]}
    scheduler.check_final(final)
    plain, hold = type(scheduler)(**options), options["hold_steps"]
    end = options["warmup_steps"] + options["ramp_steps"]
    end += len(scheduler.milestones) * hold
    assert (scheduler.frozen_begins, scheduler.length) == (end, end)
    assert scheduler.hold_begins == end - hold
    updates = range(end + 3)
    found = [scheduler.targets(i, final)["params"] for i in updates]
    phases = [scheduler.phase(i) for i in updates]
    # a function of the update alone
    other = type(scheduler)(**options, milestones=scheduler.milestones)
    for i in data.draw(st.permutations(updates)):
        assert other.targets(i, final) == {"params": found[i]}
        assert other.phase(i) == phases[i]
    assert found == sorted(found)

    written = [(scheduler.milestone(i), i) for i in updates]
    written = [pair for pair in written if pair[0] is not None]
    assert [share for share, _ in written] == scheduler.milestones[:-1]
    held: set[int] = set()
    for share, last in written:
        stands = range(last - hold, last + 1)
        assert [found[i] for i in stands] == [share] * (hold + 1)
        assert {phases[i] for i in stands} == {"hold"}
        assert [scheduler.hold_ends(i) for i in stands] == [None, *[last] * hold]
        held |= {*stands}
    for i in updates:
        before = sum(last < i for _, last in written) * hold
        if i in held or i >= scheduler.hold_begins:
            continue
        assert phases[i] == plain.phase(i - before)
        assert scheduler.hold_ends(i) is None
        assert found[i] == plain.targets(i - before, final)["params"]
    assert phases[scheduler.hold_begins :] == ["hold"] * hold + ["frozen"] * 3
    assert found[scheduler.hold_begins :] == [final["params"]] * (hold + 3)


@given(with_milestones(), st.floats(0.1, 1))
def test_several_costs_pass_milestones_in_proportion(made, part):
    scheduler, _ = made
    largest = scheduler.milestones[-1]
    final = {"params": largest * part, "macs": largest}
    stations = scheduler.stations(final)
    assert stations[-1] == final
    found = [scheduler.targets(i, final) for i in range(scheduler.frozen_begins + 1)]
    for cost in final:
        rising = [targets[cost] for targets in found]
        assert rising == sorted(rising)
    for (begin, end), share, station in zip(
        scheduler.pauses, scheduler.milestones, stations, strict=False
    ):
        assert station == {"params": pytest.approx(share * part), "macs": share}
        assert found[begin] == found[end] == station


@given(with_milestones(), st.integers(1, 9))
def test_in_epochs_they_are_the_same(made, updates):
    scheduler, options = made
    lengths = {name: value for name, value in options.items() if name.endswith("_steps")}
    epochs = {name: value / updates for name, value in lengths.items()}
    again = type(scheduler)(
        **{**options, **epochs}, in_epochs=True, milestones=scheduler.milestones
    )
    again.fit_(updates)
    final = {"params": scheduler.milestones[-1]}
    for i in range(scheduler.frozen_begins + 2):
        assert again.phase(i) == scheduler.phase(i)
        assert again.targets(i, final) == scheduler.targets(i, final)
        assert again.milestone(i) == scheduler.milestone(i)


WRONG = [
    ([0.5, 0.3], {}, r"milestones is \[0.5, 0.3\]; expected a list of rising numbers in"),
    ([0.3, 0.3], {}, "expected a list of rising"),
    ([], {}, "expected a list of rising"),
    ([0.3, 1.0], {}, "expected a list of rising"),
    (0.3, {}, "milestones is 0.3; expected a list"),
    ([0.3, 0.5], {"hold_steps": 0}, "hold_steps is 0, .* gates settle at each"),
    ([0.3, 0.5], {"ramp_steps": 0}, "ramp_steps is 0, .* expected a longer ramp"),
    ([0.1, 0.2, 0.3, 0.5], {"ramp_steps": 2}, "ramp_steps is 2, .* longer ramp"),
]


@pytest.mark.parametrize(("milestones", "changes", "message"), WRONG)
def test_milestones_that_make_no_sense(milestones, changes, message):
    conf = {"warmup_steps": 1, "ramp_steps": 8, "hold_steps": 2, **changes}
    with pytest.raises(ValueError, match=message):
        LinearSparsityScheduler(**conf, milestones=milestones)
    if not isinstance(milestones, list) or milestones != sorted({*milestones} - {1.0}):
        return
    if milestones:
        epochs = {**conf, "in_epochs": True, "milestones": milestones}
        with pytest.raises(ValueError, match=message):
            LinearSparsityScheduler(**epochs).fit_(1)


def test_milestones_that_do_not_lead_to_the_target():
    conf = {"ramp_steps": 8, "milestones": [0.3, 0.5]}
    LinearSparsityScheduler(**conf).check_final({"params": 0.2, "macs": 0.5})
    for target in (0.4, 0.6):
        with pytest.raises(ValueError, match=f"the last to be the target .*, {target}"):
            LinearSparsityScheduler(**conf).check_final({"params": target})
    with pytest.raises(ValueError, match=r"start is 0\.3; expected less than the first"):
        LinearSparsityScheduler(**conf, start=0.3).check_final({"params": 0.5})

"""Every number option of ours has its range, its check, and its place in the schema."""

import math
import typing

import pytest

from espnet_l0prune.core.constraints import CONSTRAINTS
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.ranges import RANGES, Pair
from espnet_l0prune.core.schedules import SCHEDULERS
from espnet_l0prune.plugin.model import L0Distilled
from espnet_l0prune.plugin.network import L0Network
from espnet_l0prune.plugin.options import make_goal, make_scheduler
from espnet_l0prune.plugin.schema import options, schema
from espnet_l0prune.testing.models import arguments, model
from tests.plugin.test_training import SCHEDULE, start

CLASSES = {
    "encoder_conf": [L0Network],
    "model_conf": [L0Distilled],
    "optim_conf": [L0AdamW],
    "sparsity_goal_conf": [Goal],
    "sparsity_scheduler_conf": [*SCHEDULERS.values()],
    "sparsity_constraint_conf": [*CONSTRAINTS.values()],
}
ALL = [(where, name) for where in CLASSES for name in RANGES[where]]


@pytest.mark.parametrize("where", CLASSES)
def test_every_number_option_has_a_range_and_a_default_in_it(where):
    for cls in CLASSES[where]:
        hints = typing.get_type_hints(cls.__init__)
        for name, option in options(cls).items():
            if any(kind in str(hints[name]) for kind in ("float", "'int'", "int |")):
                ranges = RANGES["frontend_conf" if name == "fs" else where]
                assert name in ranges or name == "structure", f"{cls} {name}"
                assert option["default"] is None or option["default"] in ranges[name]


def conf_of(where: str, name: str, value: object) -> dict:
    """A configuration in which one option has a value."""
    conf: dict = {where: {**(SCHEDULE if "scheduler" in where else {}), name: value}}
    if "goal" in where:  # in one place alone
        conf["sparsity_scheduler_conf"] = {k: v for k, v in SCHEDULE.items() if k != name}
    for option, classes in (
        ("sparsity_constraint", CONSTRAINTS),
        ("sparsity_scheduler", SCHEDULERS),
    ):
        if where == f"{option}_conf" and name in RANGES[where]:
            conf[option] = next(
                (k for k, cls in classes.items() if name in options(cls)), "linear"
            )
    return conf


@pytest.mark.parametrize(("where", "name"), ALL)
def test_each_is_checked_before_training(where, name):
    given = [0.9, math.nan] if isinstance(RANGES[where][name], Pair) else math.nan
    with pytest.raises(ValueError, match=rf"{where}: {name} is .*; expected .* in [(\[]"):
        start(**conf_of(where, name, given))


def test_a_decoder_has_the_ranges_of_an_encoder():
    with pytest.raises(
        ValueError, match="decoder_conf: round_to is nan; expected a whole"
    ):
        model(decoder="l0_transformer", decoder_conf={"round_to": math.nan})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_conf": {"units": 3}}, "encoder_conf: units is 3; expected a value of"),
        ({"encoder_conf": {"uniform": "no"}}, "uniform is 'no'; .* of type bool"),
        ({"model_conf": {"teacher_config": 1}}, "teacher_config is 1; .* of type str"),
    ],
)
def test_values_of_another_type(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


def test_the_schema_has_the_limits():
    found = schema()["properties"]
    for where, name in ALL:
        if name != "target":
            option = found[where]["properties"][name]
            assert RANGES[where][name].schema().items() <= option.items()
    share = found["sparsity_goal_conf"]["properties"]["target"]["anyOf"][0]
    assert share == {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}


def test_the_goal_has_options_of_its_own_which_the_schedule_had_before():
    lengths = {k: v for k, v in SCHEDULE.items() if k.endswith("_steps")}
    goal = {"target": {"macs": 0.2}, "scope": "model", "seconds": 3, "tokens": 7}
    new = arguments(
        sparsity_scheduler="linear",
        sparsity_scheduler_conf=lengths,
        sparsity_goal_conf=goal,
    )
    old = arguments(
        sparsity_scheduler="linear", sparsity_scheduler_conf={**lengths, **goal}
    )
    del old.sparsity_goal, old.sparsity_goal_conf  # as 0.1.0 wrote it
    assert make_goal(new) == make_goal(old) == Goal(**goal)
    assert vars(make_scheduler(new)) == vars(make_scheduler(old))
    assert make_goal(arguments()) == Goal()
    new.sparsity_scheduler_conf["scope"] = "encoder"
    with pytest.raises(
        ValueError, match="scope is in sparsity_scheduler_conf and in spa"
    ):
        make_goal(new)

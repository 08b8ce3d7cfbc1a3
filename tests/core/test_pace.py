"""How many updates close a gate, schedules that have fewer, and how long files take."""

import pytest
import torch

from espnet_l0prune.core.gates import AdaptiveDropout, HardConcrete
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.pace import (
    check_milestones,
    pace_of,
    shortage,
    updates_to_close,
)
from espnet_l0prune.core.projected import FARTHEST
from espnet_l0prune.core.schedules import LinearSparsityScheduler
from espnet_l0prune.core.steps import how_long


@pytest.mark.parametrize("kind", [HardConcrete, AdaptiveDropout])
@pytest.mark.parametrize("p", [0.985, 0.99, 0.999])
def test_a_gate_that_is_always_pushed_closes_in_as_many_updates(kind, p):
    gate = kind(3, p)
    optimizer = L0AdamW(gate.parameters(), gate_lr=0.05)
    needed = updates_to_close([gate], optimizer)
    made = 0
    while gate.is_open().any():
        gate.log_alpha.grad = torch.tensor([1e-4, 1.0, 1e4])
        optimizer.step()
        made += 1
    assert made == needed


def test_in_turns_it_takes_twice_as_many():
    gate = HardConcrete(3)
    once, twice = (
        updates_to_close([gate], L0AdamW(gate.parameters(), order=order))
        for order in ("joint", "alternating")
    )
    assert (once, twice) == (270, 540)


def test_the_loss_alone_could_close_a_gate_four_times_on_the_ramp():
    """In the hold, what is left are the updates that move gates, to the last one."""
    gate, lengths = HardConcrete(3), {"warmup_steps": 5, "hold_steps": 10}
    for order, turns in (("joint", 1), ("alternating", 2)):
        optimizer = L0AdamW(gate.parameters(), order=order)
        for ramp, size in ((400, 0.054 * turns), (4, 1.0), (0, 1.0)):
            scheduler = LinearSparsityScheduler(ramp_steps=ramp, **lengths)
            begin, first, last, after = (
                pace_of(scheduler, 5 + ramp + i, [gate], optimizer) for i in (0, 1, 9, 10)
            )
            assert begin.size == pytest.approx(size, rel=0.01)
            assert begin.left is None
            assert (first.left, last.left, after.left) == (9 // turns + turns - 1, 1, 1)


def test_a_schedule_with_too_few_updates_says_what_would_do():
    gate = HardConcrete(3)
    lengths = {"warmup_steps": 500, "ramp_steps": 36}
    for hold, rate, short in ((18, 0.02, True), (233, 0.02, True), (234, 0.02, False)):
        scheduler = LinearSparsityScheduler(**lengths, hold_steps=hold)
        optimizer = L0AdamW(gate.parameters(), gate_lr=rate)
        assert bool(shortage(scheduler, [gate], optimizer)) == short
    scheduler = LinearSparsityScheduler(**lengths, hold_steps=18)
    said = shortage(scheduler, [gate], L0AdamW(gate.parameters()))
    assert "gates train for 54 updates (ramp and hold), but to close one takes" in said
    assert "some 270 at gate_lr 0.02" in said
    assert "Raise gate_lr in optim_conf to 0.1, or train for longer" in said
    assert not shortage(scheduler, [gate], L0AdamW(gate.parameters(), gate_lr=0.1))


def test_gates_settle_at_a_milestone_and_are_no_surer_than_new_ones():
    gate = HardConcrete(3)
    optimizer = L0AdamW(gate.parameters())
    conf = {"warmup_steps": 1, "ramp_steps": 10, "hold_steps": 4}
    scheduler = LinearSparsityScheduler(**conf, milestones=[0.4, 0.5])
    found = [pace_of(scheduler, i, [gate], optimizer) for i in range(1, 20)]
    rising = [None] * 9
    assert [pace.left for pace in found] == [*rising, 3, 2, 1, 1, *[None] * 2, 3, 2, 1, 1]
    new = torch.logit(torch.tensor(0.99)).item()
    assert [pace.farthest for pace in found] == [
        *[FARTHEST] * 9,
        *[pytest.approx(new)] * 4,
        *[FARTHEST] * 6,
    ]


def test_milestones_that_are_closer_than_the_gates_can_settle():
    gate = HardConcrete(3)  # its log_alpha goes 5.4 until it is closed
    conf = {"warmup_steps": 0, "hold_steps": 2, "milestones": [0.3, 0.4, 0.6]}
    for projects, rate, ramp, short in (
        (True, 0.02, 18, "the milestone 0.4 has 5 updates, .* takes some 6;"),
        (True, 0.02, 24, None),
        (False, 0.5, 48, "the milestone 0.4 has 10 updates, .* takes some 11;"),
        (False, 0.5, 54, None),
        (False, 0.02, 500, "the milestone 0.3 has 252 updates, .* takes some 270;"),
    ):
        scheduler = LinearSparsityScheduler(ramp_steps=ramp, **conf)
        run = scheduler, [gate], L0AdamW(gate.parameters(), gate_lr=rate)
        if short is None:
            check_milestones(*run, projects)
            continue
        with pytest.raises(ValueError, match=short):
            check_milestones(*run, projects)
    one = LinearSparsityScheduler(ramp_steps=1, hold_steps=1, milestones=[0.3])
    check_milestones(one, [gate], L0AdamW(gate.parameters()), projects=False)


def test_what_there_is_to_load_and_for_how_long(tmp_path):
    weights = tmp_path / "model.pth"
    assert how_long(weights) == "0 MB of weights, about 1 s in all"
    with weights.open("wb") as file:
        file.truncate(1_100_000_000)
    assert how_long(weights) == "1,100 MB of weights, about 101 s in all"

"""The rates that `adopt` chooses, from those of the dense training."""

import pytest
import torch
from espnet2.tasks.abs_task import scheduler_classes

from espnet_l0prune.deploy.rates import fine_tuning_rate, pruning_rate

# Dense trainings with a peak of 0.003, as ESPnet's schedulers can be told so
PEAKS = {
    "warmuplr": ({"lr": 0.003}, {"warmup_steps": 50}),
    "noamlr": ({"lr": 0.3}, {"model_size": 100, "warmup_steps": 100}),
    "piecewiselinearwarmuplr": (
        {"lr": 0.003},
        {"warmup_steps_list": [0, 20, 50], "warmup_lr_list": [0.0, 0.001, 0.003]},
    ),
    "onecyclelr": ({"lr": 1.0}, {"max_lr": 0.003, "total_steps": 200}),
    "exponentialdecaywarmup": (
        {"lr": 0.003},
        {"max_lr": 0.003, "min_lr": 1e-5, "total_steps": 200, "warmup_steps": 20},
    ),
    "steplr": ({"lr": 0.003}, {"step_size": 30}),
    "cosineannealinglr": ({"lr": 0.003}, {"T_max": 200}),
    "tristagelr": ({"lr": 0.003}, {"max_steps": 200}),
}


def dense_of(scheduler: str | None, **more) -> dict:
    optim, conf = PEAKS.get(str(scheduler), ({"lr": 0.003}, {}))
    named = {"optim": "adam", "optim_conf": optim, "scheduler_conf": conf}
    return {**named, "scheduler": scheduler, **more}


@pytest.mark.parametrize("name", PEAKS)
def test_fine_tuning_begins_at_a_third_of_the_peak_that_the_dense_training_had(name):
    dense = dense_of(name)
    optimizer = torch.optim.Adam([torch.zeros(1)], **dense["optim_conf"])
    scheduler = scheduler_classes[name](optimizer, **dense["scheduler_conf"])
    peak = 0.0
    for _ in range(150):
        peak = max(peak, optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert peak == pytest.approx(0.003, rel=0.02)
    options = fine_tuning_rate(dense)
    assert options["optim_conf"]["lr"] == pytest.approx(0.001)
    assert options["scheduler"] == "l0_lineardecaylr"
    assert options["scheduler_conf"] == {"warmup_ratio": 0.1}


def test_a_training_without_a_scheduler():
    options = fine_tuning_rate(dense_of(None, scheduler_conf=None, optim="sgd"))
    assert options["optim_conf"] == {"lr": 0.001}


def test_a_training_whose_rate_fell_is_followed_by_another_at_its_own_rate():
    fallen = dense_of("l0_lineardecaylr")
    assert fine_tuning_rate(fallen)["optim_conf"]["lr"] == 0.003
    assert pruning_rate(fallen)["optim_conf"]["lr"] == 0.003


@pytest.mark.parametrize(
    "more",
    [
        {"iterator_type": "chunk"},
        {"multiple_iterator": True},
        {"optim_conf": {}},
        {"optim_conf": {"lr": 0.0}},
    ],
)
def test_the_dense_scheduler_stays_where_the_length_or_the_peak_is_unknown(more):
    dense = dense_of("warmuplr", **more)
    options = fine_tuning_rate(dense)
    assert "scheduler" not in options
    assert options["scheduler_conf"] == {"warmup_steps": 5}
    assert options["optim_conf"] == dense["optim_conf"]


def test_a_scheduler_that_was_asked_for():
    """The dense one as it would stay, with its peak; another one without options."""
    dense = dense_of("warmuplr")
    same = fine_tuning_rate(dense, "warmuplr")
    assert same["scheduler_conf"] == {"warmup_steps": 5}
    assert fine_tuning_rate(dense, "steplr")["scheduler_conf"] == {}
    for options in (same, fine_tuning_rate(dense, "steplr")):
        assert options["optim_conf"] == {"lr": 0.003}
        assert "scheduler" not in options  # which the setting will be
    assert fine_tuning_rate(dense, "l0_lineardecaylr") == fine_tuning_rate(dense)


@pytest.mark.parametrize("value", ["1e-3", [0.1, 0.2], float("nan")])
def test_a_peak_that_is_no_number(value):
    dense = dense_of("onecyclelr", scheduler_conf={"max_lr": value})
    with pytest.raises(ValueError, match=r"max_lr: .*; expected a number"):
        fine_tuning_rate(dense)

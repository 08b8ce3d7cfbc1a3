"""One range for every number, and no number that is none."""

import math

import pytest

from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.ranges import RANGES, Pair, Range, check

ALL = [(where, name) for where, found in RANGES.items() for name in found]
NONE = (math.nan, math.inf, -math.inf, 1e300, -1e300, 10**400, True, False, "1", None, [])


@pytest.mark.parametrize(("where", "name"), ALL)
def test_no_range_has_room_for_what_is_no_sensible_number(where, name):
    for value in NONE:
        given = [0.5, value] if isinstance(RANGES[where][name], Pair) else value
        with pytest.raises(ValueError, match=f"{where}: {name} is .*; expected .* in "):
            check(where, {name: given})


@pytest.mark.parametrize(("where", "name"), ALL)
def test_every_range_has_room_and_only_a_log_alpha_or_multiplier_is_negative(where, name):
    of = RANGES[where][name]
    signed = name in ("lambda1", "centre")
    assert of.low == -of.high if signed else of.low >= 0
    assert of.low < of.high


def test_what_the_ends_of_some_ranges_mean():
    opened = RANGES["encoder_conf"]["open_probability"]
    for probability, is_dense in ((opened.low, True), (opened.low - 0.001, False)):
        gate = HardConcrete(1, probability).eval()
        assert bool((gate() == 1).all()) is is_dense
    assert (opened.high, opened.high in opened) == (1, False)  # its log_alpha is infinite
    for option, value in {"--epochs": 1, "--rounds": 1, "--seconds": 0.01}.items():
        check("command line", {option: value})
    check("model_conf", {"task_weight": 0, "layer_weight": 0})  # a loss less
    check("sparsity_constraint_conf", {"lambda1": 0, "lambda2": 0})
    check("frontend_conf", {"fs": 1})
    for option in ("--epochs", "--finetune_epochs", "--rounds", "--seconds"):
        with pytest.raises(ValueError, match=option):
            check("command line", {option: 0})


def test_ends_are_in_or_out_as_written():
    half = Range(0, 1, above=True)
    assert [x in half for x in (0, 1e-9, 0.5, 1, 1.001)] == [0, 1, 1, 1, 0]
    assert [x in Range(0, 1, below=True) for x in (0, 1 - 1e-9, 1)] == [1, 1, 0]
    assert [x in Range(1, 9, whole=True) for x in (1, 2.0, 9, 10)] == [1, 0, 1, 0]
    assert (str(half), half.schema()) == (
        "a number in (0, 1]",
        {"exclusiveMinimum": 0, "maximum": 1},
    )
    assert str(Range(1, 65_536, whole=True)) == "a whole number in [1, 65536]"
    pair = Pair(0, 1, below=True)
    assert [x in pair for x in ([0.9, 0.99], (0, 0), [0.9], 0.9, [0.9, 1.0])] == [
        1,
        1,
        0,
        0,
        0,
    ]
    assert str(pair) == "two numbers in [0, 1)"


def test_what_yaml_reads_as_a_text_is_explained():
    with pytest.raises(ValueError, match=r"is '2e-2'; .* YAML reads 2e-2 as a text"):
        check("optim_conf", {"gate_lr": "2e-2"})
    with pytest.raises(ValueError, match=r"is 'high'; expected a number in \(0, 10\]$"):
        check("optim_conf", {"gate_lr": "high"})

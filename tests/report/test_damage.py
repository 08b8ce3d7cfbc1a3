"""Reports on files that are damaged, partial or of another version: a page that says what
is missing, or one message, and never a trace."""

import copy
import html
import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_l0prune.cli import main
from espnet_l0prune.report.headline import effects, savings, standing
from espnet_l0prune.report.history import read_history
from espnet_l0prune.report.results import read_results
from espnet_l0prune.report.run import read_run
from espnet_l0prune.report.values import LARGEST
from espnet_l0prune.testing.models import arguments
from tests.report.experiments import (
    CUT,
    RESULTS,
    SCHEDULE,
    change_config,
    change_stats,
    stats,
    write_cut,
    write_experiment,
)

T = TypeVar("T")
T = TypeVar("T")
PARTS = ("train", "valid")
BAD = [
    None, True, -1, 0, 1e300, math.inf, -math.inf, math.nan, 10**400, -(10**25), "",
    "a text", "\ud800", [], [[1]], {}, {"a": {"b": None}}, 2.5, 12,
]  # fmt: skip


STATS = stats(4)


@st.composite
def damaged(draw, data: object) -> object:
    """A copy in which one to three places are gone, or hold something else."""
    whole = {"all": copy.deepcopy(data)}
    for _ in range(draw(st.integers(1, 3))):
        place, name = whole, "all"
        while isinstance(place[name], (dict, list)) and place[name]:
            if not draw(st.integers(0, 4)):
                break
            place = place[name]
            names = [*place] if isinstance(place, dict) else [*range(len(place))]
            name = draw(st.sampled_from(names))
        if place is not whole and isinstance(place, dict) and draw(st.booleans()):
            del place[name]
        else:
            place[name] = copy.deepcopy(draw(st.sampled_from(BAD)))
    return whole["all"]


@pytest.fixture
def exp(tmp_path) -> Path:
    """A folder of experiments: one that prunes, and one that was cut from it."""
    pruned = write_experiment(tmp_path / "exp/asr_pruned")
    write_cut(tmp_path / "exp/asr_cut", pruned)
    (tmp_path / "exp/RESULTS.json").write_text(json.dumps(RESULTS))
    return tmp_path / "exp"


def report(capsys, *words) -> tuple[str, list[str]]:
    """The text of the page, and the lines that were printed."""
    assert main(["report", *map(str, words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    page = Path(lines[-1].split(",")[0])
    return html.unescape(page.read_text("utf-8")), lines[:-1]


def found(read: Callable[[], T], expected: str) -> T | None:
    """What is read; or None, where the error says what was expected."""
    try:
        return read()
    except ValueError as e:
        message = str(e)
    assert expected in message
    return None


ANY = settings(
    derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


FIGURES = {"loss": 5.0, "sparsity_target_params": 0.1}
LIGHTNING = {
    "callbacks": {
        "L0Callback": {
            "config": "seed: 0",
            "epochs": [
                {"number": n, "update": 3 * n, "seconds": 0.5}
                | {"train": dict(FIGURES), "valid": dict(FIGURES)}
                for n in range(1, 5)
            ],
        }
    }
}


@pytest.mark.parametrize(
    ("file", "whole"),
    [
        ("checkpoint.pth", {"reporter": {"stats": STATS}}),
        ("last.ckpt", LIGHTNING),
    ],
)
def test_any_history(file, whole, tmp_path):
    torch.save(whole, tmp_path / file)
    epochs, missing = read_history(tmp_path)
    assert ([epoch.update for epoch in epochs], missing) == ([3, 6, 9, 12], [])

    @given(damaged(whole))
    @settings(ANY, max_examples=200)
    def check(saved):
        torch.save(saved, tmp_path / file)
        check_history(tmp_path)

    check()


def test_a_history_that_was_not_kept_from_the_beginning(tmp_path):
    """Another version of the callback began the run; and a loss was no number."""
    kept = copy.deepcopy(LIGHTNING)
    epochs = kept["callbacks"]["L0Callback"]["epochs"]
    del epochs[:2]
    epochs[1]["valid"]["loss"] = math.nan
    torch.save(kept, tmp_path / "last.ckpt")
    found, missing = read_history(tmp_path)
    assert [(epoch.number, epoch.update) for epoch in found] == [(3, 9), (4, 12)]
    assert [message.removeprefix("last.ckpt has ") for message in missing] == [
        "no epoch between 0 and 3",
        "no number for valid.loss in epoch 4",
    ]
    assert "sparsity_target_params" in found[1].valid


def check_history(tmp_path):
    expected = "Expected the checkpoint of an ESPnet training"
    epochs, _ = found(lambda: read_history(tmp_path), expected) or ([], [])
    assert [epoch.number for epoch in epochs] == sorted({e.number for e in epochs})
    assert [epoch.update for epoch in epochs] == sorted(e.update for e in epochs)
    for epoch in epochs:
        values = [epoch.seconds, *epoch.train.values(), *epoch.valid.values()]
        assert all(abs(value) <= LARGEST for value in values)


@given(damaged(RESULTS))
@settings(ANY, max_examples=200)
def test_any_results(tmp_path, data):
    file = tmp_path / "RESULTS.json"
    file.write_text(json.dumps(data))
    models = (
        found(lambda: read_results(file), "expected what stage 10 of the recipe") or []
    )
    for model in models:
        for name in ("encoder_parameters", "parameters", "macs", "rtf", "seconds"):
            value = getattr(model, name)
            assert (name in model.missing) if value is None else 0 <= value <= LARGEST
        rates = [*model.wer.values(), *model.cer.values()]
        assert all(0 <= rate <= LARGEST for rate in rates)
    for dense, model in itertools.permutations(models, 2):
        assert all(map(str, savings(dense, model) + effects(dense, model)))


CONFIG = {k: v for k, v in vars(arguments(**SCHEDULE)).items() if v not in (None, {}, [])}


@pytest.mark.parametrize(("counted", "examples"), [(False, 200), (True, 20)])
def test_any_configuration(counted, examples, exp):
    """Whatever is damaged, the run is read, and says why where it is not whole."""
    folder = exp / "asr_pruned"
    if not counted:  # which takes a second
        (folder / "latest.pth").unlink()

    @given(damaged(CONFIG))
    @settings(ANY, max_examples=examples)
    def check(config):
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        run = found(lambda: read_run(folder, "a"), "expected the config.yaml")
        if run is not None:
            assert isinstance(standing(run), str)
            assert (run.inspection is not None) == counted or run.problems

    check()


@given(damaged(CUT))
@settings(ANY, max_examples=100)
def test_any_cut(tmp_path, cut):
    (tmp_path / "cut.json").write_text(json.dumps(cut))
    (tmp_path / "config.yaml").write_text("{token_list: [a], encoder: none}")
    run = read_run(tmp_path, "a")
    assert run.pruning is not None or "expected what `espnet-l0prune cut`" in str(
        run.problems
    )
    assert isinstance(standing(run), str)


def test_every_damage_is_listed_under_its_name(exp, tmp_path, capsys):
    """And the others are shown, whatever the figures are."""
    spoilt = stats(12)
    valid, train = spoilt[2]["valid"], spoilt[2]["train"]
    changes = {
        2: {"valid": valid},
        3: {"train": spoilt[3]["train"]},
        4: None,
        5: {"train": {"loss": 1.0, "total_count": -3}, "valid": valid},
        6: {"train": {**spoilt[6]["train"], "loss": "1.0", "time": 7}, "valid": valid},
        8: {part: dict.fromkeys(train, math.inf) for part in PARTS},
        9: {part: dict.fromkeys(train, 10**400) for part in PARTS},
        10: {part: {**spoilt[10][part], "loss": LARGEST} for part in PARTS},
        11: {"train": spoilt[11]["train"], "valid": dict.fromkeys(train, -LARGEST)},
        "twelve": spoilt.pop(12),
    }
    del spoilt[7]
    change_stats(exp / "asr_pruned", spoilt | changes)
    shutil.copytree(exp / "asr_pruned", exp / "damaged")
    change_config(exp / "damaged", accum_grad="2", sparsity_scheduler_conf={"target": 3})
    (exp / "damaged/checkpoint.pth").write_bytes(b"")
    torch.save([1], exp / "damaged/checkpoint.previous.pth")
    (exp / "damaged/latest.pth").write_bytes(b"")
    (exp / "asr_cut/cut.json").write_text("null")
    (exp / "RESULTS.json").write_text(
        '{"models": {"dense": null, "pruned": {"macs": 0}}}'
    )
    text, lines = report(capsys, exp, "--out", tmp_path / "page")
    ours = "asr_pruned: checkpoint.pth has"
    for said in (
        f"{ours} epochs without a number",
        f"{ours} no epoch between 6 and 8",
        f"{ours} no number for train.total_count in epoch 2, 4, 5, 8, 9",
        f"{ours} no number for valid in epoch 3, 4",
        f"{ours} no number for train.loss in epoch 6, 8, 9",
        f"{ours} no number for train.time in epoch 6, 8, 9",
        f"{ours} no number for valid.loss in epoch 8, 9",
        "damaged: config.yaml has no accum_grad from 1 on",
        f"damaged: {exp}/damaged/checkpoint.previous.pth cannot be read",
        f"damaged: {exp}/damaged/latest.pth cannot be loaded",
        "damaged: sparsity_goal_conf: target is 3; expected a number in (0, 1)",
        f"asr_cut: {exp}/asr_cut/cut.json cannot be read",
        f"{exp}/RESULTS.json: dense has no wer, cer, encoder_parameters, parameters",
    ):
        assert f"<p>{said}" in text
        assert any(line.startswith(f"missing: {said}") for line in lines)
    pictures = {*re.findall(r'<figure id="(.*?)">', text)}
    assert {
        "losses_asr_pruned",
        "sparsity_params",
        "structure_asr_cut_encoder",
    } <= pictures
    assert "<td>0 M</td>" in text


def test_configurations_that_are_missing_or_damaged(exp, tmp_path, capsys):
    """In a folder they are named, and the rest is shown; by themselves, an error."""
    for name in ("lost", "broken"):
        shutil.copytree(exp / "asr_cut", exp / name)
    (exp / "lost/config.yaml").unlink()
    (exp / "broken/config.yaml").write_text("{")
    text, lines = report(capsys, exp, "--out", tmp_path / "page")
    assert "<h1>asr_cut, asr_pruned</h1>" in text
    for name in ("lost", "broken"):
        assert f"<p>{name} is left out: configuration {exp / name}/config.yaml" in text
        assert any(line.startswith(f"missing: {name} is left out") for line in lines)
        assert main(["report", str(exp / name), "--out", str(tmp_path / "page")]) == 1
        message = capsys.readouterr().err
        assert message.startswith("espnet-l0prune report: ")
        assert "Traceback" not in message
    shutil.rmtree(exp / "asr_pruned")
    shutil.rmtree(exp / "asr_cut")
    assert main(["report", str(exp), "--out", str(tmp_path / "page")]) == 1
    assert "broken is left out: configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[]",
        "1e400",
        '{"models": null}',
        '{"models": [1]}',
        "9" * 5000,
        "[" * 9999,
    ],
)
def test_results_that_are_none(content, tmp_path):
    (tmp_path / "RESULTS.json").write_text(content)
    with pytest.raises(ValueError, match="expected what stage 10 of the recipe writes"):
        read_results(tmp_path / "RESULTS.json")


def test_numbers_in_results_that_are_none(tmp_path):
    model = (
        '{"wer": {"a": 1e400, "b": null, "c": 0.5}, "cer": [], "macs": -1, "rtf": NaN}'
    )
    (tmp_path / "RESULTS.json").write_text(
        f'{{"seconds": "10", "models": {{"a\\ud800": {model}, "b": {{}}}}}}'
    )
    a, b = read_results(tmp_path / "RESULTS.json")
    assert (a.name, a.wer, a.mean_wer) == ("a\ufffd", {"c": 0.5}, 0.5)
    costs = ["encoder_parameters", "parameters", "macs", "rtf", "seconds"]
    assert a.missing == ["cer", *costs]
    assert b.missing == ["wer", "cer", *costs]
    assert effects(b, a) == savings(b, a) == []

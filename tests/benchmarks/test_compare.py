"""The cells of benchmarks/compare.py can be trained, and its rows say what they hold."""

import importlib
import json
from pathlib import Path

import pytest
import yaml
from builders import TOKENS
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.budget import check_compatible, check_reachable, count_parameters
from espnet_l0prune.plugin.register import make_scheduler, make_workload
from espnet_l0prune.plugin.workload import make_budget

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULES = {"encoder.encoders.0.feed_forward": {"ffn_channels": [12, 6]}}


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("compare")


@pytest.fixture
def cell(compare, tmp_path):
    def make(method: str, budget: float):
        corpus = compare.Corpus([], "test", tmp_path)
        dense = tmp_path / "dense"
        if not dense.exists():
            args = parsed(compare.written(dense / "t.yaml", compare.recipe_conf("train")))
            (dense / "asr_dense").mkdir()
            compare.written(dense / "asr_dense/config.yaml", vars(args))
        return compare.Cell(corpus, dense, method, budget, 0)

    return make


def parsed(file: Path):
    command = ["--config", str(file), "--output_dir", "none", "--token_type", "char"]
    args = ASRTask.get_parser().parse_args(command)
    args.token_list = list(TOKENS)
    return args


@pytest.mark.parametrize("budget", [0.5, 0.8])
def test_every_variant_of_the_gates_can_reach_its_budget(budget, compare, cell):
    gates = {n: m for n, m in compare.METHODS.items() if isinstance(m, compare.Gates)}
    for name, method in gates.items():
        one = cell(name, budget)
        args = parsed(compare.written(one.folder / "prune.yaml", method.conf(one)))
        counted = make_budget(ASRTask.build_model(args), make_workload(args))
        goal = make_scheduler(args).goal
        assert goal == dict.fromkeys(method.costs, budget)
        check_reachable(counted, goal)
        check_compatible(counted, goal)


def test_layers_on_demand_train_with_espnets_own_options(compare, tmp_path):
    conf = compare.LayersOnDemand(skip=0.3).conf()
    args = parsed(compare.written(tmp_path / "t.yaml", conf))
    encoder = ASRTask.build_model(args).encoder
    rates = [block.stochastic_depth_rate for block in encoder.encoders]
    assert rates == pytest.approx([0.05 * i for i in range(1, 7)])
    assert encoder.interctc_layer_idx == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("cost", ["params", "macs"])
def test_a_small_model_is_the_widest_that_fits(cost, compare, cell):
    one = cell(f"scratch_{cost}", 0.5)
    size = compare.small_size(one, cost)
    args = parsed(compare.written(one.folder / "t.yaml", compare.recipe_conf("train")))

    def price(width: int, units: int) -> float:
        args.encoder_conf |= {"output_size": width, "linear_units": units}
        model = ASRTask.build_model(args)
        if cost == "macs":
            return compare.encoder_macs(model, 10, 16_000)
        return count_parameters(model.encoder)

    limit, (width, units) = 0.5 * price(72, 288), size.values()
    assert price(width, units) <= limit < price(width, units + 4)
    assert limit < price(width + 4, 4 * (width + 4))


def test_a_table_from_rows_alone(compare, tmp_path, capsys):
    rows = []
    for seed, errors in enumerate(([1, 0, 2], [0, 0, 1])):
        model = {"encoder_parameters": 50, "parameters": 60, "macs": 20, "rtf": 0.1} | {
            "long_rtf": 0.1
        }
        dense = {"encoder_parameters": 100, "parameters": 120, "macs": 80, "rtf": 0.4} | {
            "long_rtf": 0.5
        }
        rows.append(
            {
                "method": "l0",
                "budget": 0.5,
                "seed": seed,
                "config": "a",
                "words": [4] * 3,
                "errors": errors,
                "dense errors": [0, 0, 1],
                "WER (%)": 100 * sum(errors) / 12,
                "dense WER (%)": 100 / 12,
                "training seconds": 60.0,
                "dense training seconds": 120.0,
                "peak MiB": 900 + seed,
                "modules": MODULES if seed else None,
                "conditions": {
                    "clean": 1.0 + seed,
                    "noise": 4.0,
                    "speed": 6.0 + 2 * seed,
                },
                "dense conditions": {"clean": 1.0, "noise": 2.0, "speed": 4.0},
                "dense": dense,
                **model,
            }
        )
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot = tmp_path / "rows.png"
    pictures = ["--plot", str(plot), "--structures", str(tmp_path / "left.png")]
    compare.main(["--rows", str(file), *pictures])
    (line,) = compare.summary(rows)
    assert line["seeds"] == 2
    assert line["WER (%)"].startswith("16.67 ± 11.79")
    changes = line["encoder"], line["model"], line["MACs"], line["RTF"]
    assert changes == ("-50.0%", "-50.0%", "-75.0%", "-75.0%")
    assert line["training (minutes)"] == 1
    assert line["of the dense training"] == "0.50"
    assert line["peak memory (MiB)"] == 901
    low, high = compare.interval(rows)
    assert low == 0  # the mean errors are never below the dense ones
    assert 8 < high < 17
    assert "| 0.5 | l0 | a | 2 |" in capsys.readouterr().out
    compare.main(["--rows", str(file), "--conditions"])
    found = capsys.readouterr().out.splitlines()[2:]
    assert found == [
        "| 0 | dense | 1 | 1.0 | 2.0 | 4.0 | 3.0 |",
        "| 0.5 | l0 | 2 | 1.5 ± 0.7 | 4.0 ± 0.0 | 7.0 ± 1.4 | 5.5 ± 0.7 |",
    ]
    for picture in (plot, tmp_path / "left.png"):
        assert picture.read_bytes()[:4] == b"\x89PNG"


def test_committed_rows_are_whole(compare):
    for row in compare.read_rows(FOLDER / "compare.jsonl"):
        assert row["method"] in compare.METHODS
        assert len(row["errors"]) == len(row["words"]) == len(row["dense errors"])
        assert row["WER (%)"] == pytest.approx(
            100 * sum(row["errors"]) / sum(row["words"])
        )
        assert {"commit", "processor", "torch", "date"} <= row["machine"].keys()
        assert "/" not in row["command"]
        assert row["training seconds"] > 0
        assert row["dense training seconds"] > 0
        assert {"peak MiB", "dense peak MiB", "modules"} <= row.keys()
        assert row["conditions"].keys() == row["dense conditions"].keys()
        assert "clean" in row["conditions"]


def test_bad_use_is_said(compare, tmp_path):
    with pytest.raises(SystemExit, match="has no rows; expected --corpus"):
        compare.main(["--rows", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit, match="--work is missing"):
        compare.main(["--corpus", str(tmp_path)])


def test_configurations_are_merged(compare):
    base = {"a": {"b": 1, "c": [1]}, "d": 2}
    assert compare.merged(base, {"a": {"b": 3}}, {"d": {"e": 4}}) == {
        "a": {"b": 3, "c": [1]},
        "d": {"e": 4},
    }
    assert base == yaml.safe_load("{a: {b: 1, c: [1]}, d: 2}")

"""The cells of studies/compare.py can be trained, and its rows say what they hold."""

import json
from pathlib import Path

import compare
import pytest
import rows
import yaml
from cells import Cell, Corpus
from espnet2.tasks.asr import ASRTask
from hold_out import hold_out
from methods import METHODS, Gates, LayersOnDemand, config_of, small_size
from settings import merged, recipe_conf, written

from espnet_l0prune.cli.parser import get_parser
from espnet_l0prune.core.feasibility import check_compatible, check_reachable
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.bench import encoder_macs
from espnet_l0prune.plugin.counting import make_budget
from espnet_l0prune.plugin.options import make_goal
from espnet_l0prune.testing.models import TOKENS

FOLDER = Path(__file__).parents[2] / "studies"
MODULES = {"encoder.encoders.0.feed_forward": {"ffn_channels": [12, 6]}}


@pytest.fixture
def cell(tmp_path):
    def make(method: str, budget: float):
        corpus = Corpus([], "test", tmp_path)
        dense = tmp_path / "dense"
        if not dense.exists():
            args = parsed(written(dense / "t.yaml", recipe_conf("train")))
            (dense / "asr_dense").mkdir()
            written(dense / "asr_dense/config.yaml", vars(args))
        config = config_of(method, corpus, dense)
        return Cell(corpus, dense, method, budget, 0, config)

    return make


def parsed(file: Path):
    command = ["--config", str(file), "--output_dir", "none", "--token_type", "char"]
    args = ASRTask.get_parser().parse_args(command)
    args.token_list = list(TOKENS)
    return args


def test_every_variant_of_the_gates_can_reach_its_budget(cell):
    budget = 0.8  # what reaches it reaches half
    gates = {n: m for n, m in METHODS.items() if isinstance(m, Gates)}
    for name, method in gates.items():
        one = cell(name, budget)
        args = parsed(written(one.folder / "prune.yaml", method.conf(one)))
        counted = make_budget(ASRTask.build_model(args), make_goal(args))
        goal = make_goal(args).targets
        assert goal == dict.fromkeys(method.costs, budget)
        check_reachable(counted, goal)
        check_compatible(counted, goal)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("l0_adopted", 1), ("l0_adopted_importance", 2), ("l0_tuned", 10)],
)
def test_what_is_left_to_adopt(name, settings, cell):
    words = METHODS[name].options(cell(name, 0.8)).split()
    args = get_parser().parse_args(["adopt", "dense", "--out", "l0", *words])
    assert (args.params, args.macs, args.epochs, args.finetune_epochs) == (0.8, 0.8, 6, 6)
    assert len(args.set) == settings


def test_layers_on_demand_train_with_espnets_own_options(tmp_path):
    conf = LayersOnDemand(skip=0.3).conf()
    args = parsed(written(tmp_path / "t.yaml", conf))
    encoder = ASRTask.build_model(args).encoder
    rates = [block.stochastic_depth_rate for block in encoder.encoders]
    assert rates == pytest.approx([0.05 * i for i in range(1, 7)])
    assert encoder.interctc_layer_idx == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("cost", ["params", "macs"])
def test_a_small_model_is_the_widest_that_fits(cost, cell):
    one = cell(f"scratch_{cost}", 0.5)
    size = small_size(one, cost)
    args = parsed(written(one.folder / "t.yaml", recipe_conf("train")))

    def price(width: int, units: int) -> float:
        args.encoder_conf |= {"output_size": width, "linear_units": units}
        model = ASRTask.build_model(args)
        if cost == "macs":
            return encoder_macs(model, 10, 16_000)
        return count_parameters(model.encoder)

    limit, (width, units) = 0.5 * price(72, 288), size.values()
    assert price(width, units) <= limit < price(width, units + 4)
    assert limit < price(width + 4, 4 * (width + 4))


WORDS = [4, 4, 4, 4]
SPEAKERS = "abba", "abca"
COSTS = {"encoder_parameters": 50, "parameters": 60, "macs": 20, "rtf": 0.1}
DENSE = {"encoder_parameters": 100, "parameters": 120, "macs": 80, "rtf": 0.4}


def errors(clean: list[int], noisy: list[int]) -> dict[str, list[int]]:
    """By condition; every third of four utterances is heard in noise: two."""
    return {rows.CLEAN: clean, **dict.fromkeys(rows.ALL_BUT_CLEAN, noisy)}


@pytest.fixture
def three_rows():
    dense = errors([0, 0, 0, 1], [1, 1])
    found = {
        ("l0", 0): errors([1, 0, 1, 2], [2, 2]),
        ("l0", 1): errors([0, 0, 1, 1], [2, 4]),
        ("random", 0): errors([2, 2, 2, 2], [4, 4]),
    }
    return [
        {
            "method": method,
            "budget": 0.5,
            "seed": seed,
            "config": "a",
            "words": WORDS,
            "errors": wrong,
            "dense errors": dense,
            "training seconds": 60.0,
            "dense training seconds": 120.0,
            "peak MiB": 900 + seed,
            "modules": MODULES if seed else None,
            "dense": DENSE | {"long_rtf": 0.5},
            **COSTS,
            "long_rtf": 0.1,
        }
        for (method, seed), wrong in found.items()
    ]


def test_a_table_from_rows_alone(three_rows, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in three_rows))
    plot = tmp_path / "rows.png"
    pictures = ["--plot", str(plot), "--structures", str(tmp_path / "left.png")]
    compare.main(["--rows", str(file), "--seeds", "1", *pictures])
    line, _ = compare.summary(three_rows)
    assert line["seeds"] == 2
    assert line["WER (%)"] == "18.75 ± 8.84"  # 4 and 2 of 16 words
    assert line["WER, disturbed (%)"] == "62.50 ± 17.68"  # 4 and 6 of 8, six times
    changes = line["encoder"], line["model"], line["MACs"], line["RTF"]
    assert changes == ("-50.0%", "-50.0%", "-75.0%", "-75.0%")
    assert line["RTF, 10 s at once"] == "-80.0%"
    assert line["training (minutes)"] == 1
    assert line["of the dense training"] == "0.50"
    assert line["peak memory (MiB)"] == 901
    assert "| 0.5 | l0 | a | 2 |" in capsys.readouterr().out
    for picture in (plot, tmp_path / "left.png"):
        assert picture.read_bytes()[:4] == b"\x89PNG"


def test_a_table_of_the_conditions(three_rows, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in three_rows))
    compare.main(["--rows", str(file), "--conditions"])
    dense, l0, other = capsys.readouterr().out.splitlines()[2:]
    assert dense == "| 0 | dense | 1 | 6.25 |" + " 25.00 |" * 7
    assert l0 == "| 0.5 | l0 | 2 | 18.75 ± 8.84 |" + " 62.50 ± 17.68 |" * 7
    assert other == "| 0.5 | random | 1 | 50.00 |" + " 100.00 |" * 7


def test_intervals_are_of_the_mean_over_seeds(three_rows):
    line, other = compare.summary(three_rows)
    # each utterance's extra errors are 0.5, 0, 1 and 0.5; of one in four words, 0 to 25%
    low, high = (float(end) for end in line["against dense (points)"][1:-1].split(", "))
    assert 0 <= low < 12.5 < high <= 25
    # extra errors of 1 and 2 in 4 words: from 25 to 50 points
    assert line["against dense, disturbed (points)"] == "[+25.00, +50.00]"
    assert other["against dense, disturbed (points)"] == "[+75.00, +75.00]"
    line, other = compare.summary(three_rows, against="random")
    assert line["against random, disturbed (points)"] == "[-50.00, -25.00]"
    assert other["against random (points)"] == "[+0.00, +0.00]"
    assert compare.summary(three_rows, against="taylor") == []


def test_speakers_are_drawn_instead_of_utterances(three_rows):
    """Two have 1 extra error in 8 words each; of three, one has none, and one 1 in 4."""
    two, three = ([row | {"speakers": list(s)} for row in three_rows] for s in SPEAKERS)
    line, _ = compare.summary(two, by_speaker=True)
    assert line["WER (%)"] == "18.75 ± 8.84"
    assert line["against dense (points)"] == "[+12.50, +12.50]"
    line, _ = compare.summary(three, by_speaker=True)
    assert line["against dense (points)"] == "[+0.00, +25.00]"
    assert line["against dense, disturbed (points)"] == "[+37.50, +37.50]"  # one speaker


def test_committed_rows_are_whole():
    for row in compare.read_rows(FOLDER / "compare.jsonl"):
        assert row["method"] in compare.METHODS
        assert (
            row["errors"].keys() == row["dense errors"].keys() == rows.CONDITIONS.keys()
        )
        for condition, wrong in row["errors"].items():
            words = row["words"][:: rows.step_of(condition)]
            assert len(wrong) == len(words) == len(row["dense errors"][condition])
        assert {"commit", "processor", "torch", "date"} <= row["machine"].keys()
        assert "/" not in row["command"]
        assert row["training seconds"] > 0
        assert row["dense training seconds"] > 0
        assert {"peak MiB", "dense peak MiB", "modules"} <= row.keys()


@pytest.mark.parametrize("options", [[], ["--conditions"]])
def test_the_readme_shows_what_the_committed_rows_say(options, capsys):
    compare.main(options)
    assert capsys.readouterr().out in (FOLDER / "README.md").read_text()


def test_bad_use_is_said(tmp_path):
    with pytest.raises(SystemExit, match="has no rows; expected --corpus"):
        compare.main(["--rows", str(tmp_path / "none.jsonl")])
    none = ["--rows", str(FOLDER / "compare.jsonl"), "--seeds", "99"]
    with pytest.raises(SystemExit, match="no row is of a cut network"):
        compare.main([*none, "--structures", str(tmp_path / "left.png")])
    bound = ["--corpus", "none", "--work", str(tmp_path), "--dense", str(tmp_path)]
    with pytest.raises(SystemExit, match="--dense: svd is made for the recipe"):
        compare.main([*bound, "--methods", "l0_adopted", "svd"])
    with pytest.raises(SystemExit, match="--work is missing"):
        compare.main(["--corpus", str(tmp_path)])


def test_configurations_are_merged():
    base = {"a": {"b": 1, "c": [1]}, "d": 2}
    assert merged(base, {"a": {"b": 3}}, {"d": {"e": 4}}) == {
        "a": {"b": 3, "c": [1]},
        "d": {"e": 4},
    }
    assert base == yaml.safe_load("{a: {b: 1, c: [1]}, d: 2}")


def test_speakers_that_are_held_out(tmp_path):
    for speaker in range(7):
        (tmp_path / f"train/{speaker}/1").mkdir(parents=True)
    assert hold_out(tmp_path, "train", "dev2", 3) == ["0", "2", "4"]
    left = {path.name for path in (tmp_path / "train").iterdir()}
    assert left == {"1", "3", "5", "6"}
    assert {path.name for path in (tmp_path / "dev2").iterdir()} == {"0", "2", "4"}
    with pytest.raises(ValueError, match="dev2 exists; expected the name of a new set"):
        hold_out(tmp_path, "train", "dev2", 1)
    with pytest.raises(ValueError, match="has 4 speakers; expected to hold out fewer"):
        hold_out(tmp_path, "train", "dev3", 4)

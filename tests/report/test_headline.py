"""The line that says what was asked and reached, what it costs and what it saves."""

import json
import shutil
from pathlib import Path

import pytest

from espnet_l0prune.cli import main
from espnet_l0prune.report.headline import headlines
from espnet_l0prune.report.page import find_results
from espnet_l0prune.report.run import find_runs, read_run
from tests.report.experiments import (
    RESULTS,
    change_config,
    change_stats,
    stats,
    write_cut,
    write_experiment,
)


@pytest.fixture
def exp(tmp_path) -> Path:
    """One experiment, whose weights nobody needs."""
    folder = write_experiment(tmp_path / "exp/asr_pruned")
    (folder / "latest.pth").write_bytes(b"")
    return tmp_path / "exp"


def lines_of(*folders: Path) -> list[str]:
    """Of a report on these."""
    runs = [read_run(folder, name) for name, folder in find_runs([*folders])[0].items()]
    return headlines(runs, find_results([run.folder for run in runs])[0])


ASKED = "asked to remove 30.0% of the parameters and 20.0% of the MACs of the encoder"


def test_while_it_runs(exp):
    """Updates are 3 an epoch; the ramp is from 2 to 8, and phase `frozen` from 12 on."""
    for epochs, expected in (
        (
            2,
            f"epoch 2 of 6, phase ramp; {ASKED}; the target now is 20.0% of the "
            "parameters and 13.3% of the MACs; a cut would now remove 6.0% of the "
            "parameters and 6.0% of the MACs",
        ),
        (
            4,
            f"epoch 4 of 6, phase frozen; {ASKED}; removed 12.0% of the parameters and "
            "12.0% of the MACs",
        ),
        (6, f"{ASKED}; removed 18.0% of the parameters and 18.0% of the MACs"),
    ):
        change_stats(exp / "asr_pruned", stats(epochs))
        assert lines_of(exp) == [f"asr_pruned: {expected}"]
    in_epochs = {"target": 0.3, "in_epochs": True, "hold_steps": 2}
    lengths = {"warmup_steps": 1, "ramp_steps": 2}
    change_config(exp / "asr_pruned", sparsity_scheduler_conf={**in_epochs, **lengths})
    change_stats(exp / "asr_pruned", stats(2))
    (line,) = lines_of(exp)
    assert "epoch 2 of 6, phase ramp; asked to remove 30.0% of the parameters of" in line
    assert "the target now is 15.0% of the parameters;" in line


def test_before_the_first_epoch_and_without_pruning(exp):
    (exp / "asr_pruned/checkpoint.pth").unlink()
    assert lines_of(exp) == [f"asr_pruned: {ASKED}"]
    change_config(exp / "asr_pruned", sparsity_scheduler=None)
    assert lines_of(exp) == []
    change_stats(exp / "asr_pruned", stats(2))
    assert lines_of(exp) == ["asr_pruned: epoch 2 of 6"]
    change_config(exp / "asr_pruned", max_epoch=2)
    assert lines_of(exp) == []


def test_a_cut_and_what_was_decoded(exp):
    """One line for both, where there is one of each; and only what is known."""
    write_cut(exp / "asr_cut", exp / "asr_pruned")
    shutil.rmtree(exp / "asr_pruned")
    cut = (
        "asr_cut: asked to remove 30.0% of the parameters of the encoder; removed 30.1% "
        "of the parameters and 20.0% of the MACs"
    )
    assert lines_of(exp) == [cut]
    results = json.loads(json.dumps(RESULTS))
    results["models"]["pruned"] |= {"wer": {"clean": 0.06, "other": 0.155}, "rtf": 0.0117}
    errors = "mean WER of 2 sets 10.00% -> 10.75% (+0.75 points)"
    time = "encoder RTF 0.0200 -> 0.0117 (42% less time)"
    (exp / "RESULTS.json").write_text(json.dumps(results))
    assert lines_of(exp) == [f"{cut}; {errors}; {time}"]
    (exp / "asr_cut/cut.json").unlink()
    assert lines_of(exp) == [
        "pruned beside dense: removed 50.0% of the parameters and 50.0% of the MACs of "
        f"the encoder; {errors}; {time}"
    ]
    results["models"]["pruned"] = {"wer": {"clean": 0.05}, "rtf": 0.03}
    results["models"]["other"] = {}
    (exp / "RESULTS.json").write_text(json.dumps(results))
    assert lines_of(exp) == [
        "pruned beside dense: WER 5.00% -> 5.00% (+0.00 points); encoder RTF 0.0200 -> "
        "0.0300 (50% more time)"
    ]


def test_several_have_a_line_each(exp, tmp_path):
    """Those that say the same share one; each recipe has its own results."""
    write_cut(exp / "asr_cut", exp / "asr_pruned")
    shutil.copytree(exp / "asr_cut", exp / "asr_again")
    shutil.copytree(exp, tmp_path / "b/exp")
    (exp / "RESULTS.json").write_text(json.dumps(RESULTS))
    lines = lines_of(exp, tmp_path / "b/exp")
    names = [line.partition(":")[0] for line in lines]
    where = tmp_path.name
    assert names == [
        f"{where}/exp/asr_again, {where}/exp/asr_cut",
        f"{where}/exp/asr_pruned",
        "pruned beside dense",
        "b/exp/asr_again, b/exp/asr_cut",
        "b/exp/asr_pruned",
    ]


def test_it_is_on_the_page_in_the_terminal_and_in_json(tmp_path, capsys):
    folder = write_experiment(tmp_path / "asr_pruned")
    (folder / "checkpoint.pth").unlink()
    command = ["report", str(folder), "--out", str(tmp_path / "page")]
    assert main(command) == 0
    line, _ = capsys.readouterr().out.splitlines()
    removed = "removed 0.0% of the parameters and 0.0% of the MACs"  # as inspect counts
    assert line == f"asr_pruned: {ASKED}; {removed}"
    page = (tmp_path / "page/index.html").read_text()
    assert f'<h1>asr_pruned</h1>\n<p class="headline">{line}</p>\n<h2>' in page
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["headline"] == [line]
    assert printed["missing"] == []
    assert printed["page"] == str(tmp_path / "page/index.html")

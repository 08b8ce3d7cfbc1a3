"""The pages build without a warning, and every command in them runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import whisper
import yaml
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from espnet_model_zoo.downloader import ModelDownloader

from espnet_l0prune.cli import main
from espnet_l0prune.networks.units import UNITS, WORDS
from espnet_l0prune.testing import s3prl
from espnet_l0prune.testing.runs import CONFIG, data_options, make_data, run
from espnet_l0prune.testing.whisper import NAME, publish, save_whisper
from tests.plugin import test_standalone_transducer

README = Path(__file__).parents[2] / "README.md"
DOCS = README.parent / "docs"
# of plain ESPnet's, as a reader has it
DENSE = {
    "encoder": "conformer",
    "frontend": None,
    "model": "espnet",
    "optim": "adam",
    "optim_conf": {"lr": 2e-3},
    "sparsity_scheduler": None,
    "sparsity_scheduler_conf": {},
    "sparsity_constraint": None,
    "sparsity_constraint_conf": {},
    "max_epoch": 2,
    "keep_nbest_models": 2,
    "best_model_criterion": [["valid", "acc", "max"]],
}


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Of all its blocks, without remarks and with lines that go on joined."""
    text = "".join(blocks(page, "sh")).replace("\\\n", "")
    return [line.partition(" #")[0] for line in text.splitlines()]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder with dense experiments, in which the pages are followed."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "exp").mkdir()
    make_data(folder)
    run(folder, folder / "exp/asr_dense", **DENSE)
    save_whisper(folder / "exp/asr_whisper", publish(folder))
    s3prl.save_dense(folder / "exp/asr_hubert", s3prl.publish(folder))
    test_standalone_transducer.save_dense(
        folder / "exp/asr_transducer", test_standalone_transducer.options("in chunks")
    )
    yield folder
    del whisper._MODELS[NAME]


def follow(lines: list[str], capsys) -> str:
    """In this process: a new one for each would import ESPnet again."""
    printed = ""
    for line in lines:
        words, _, into = line.partition(" > ")
        name, *words = shlex.split(words)
        if name == "espnet-l0prune":
            assert main(words) == 0, line
            out = capsys.readouterr().out
            if into:
                Path(into).write_text(out)
            printed += out
        elif words[0].endswith("measure.py"):
            subprocess.run([sys.executable, *words], check=True)
        else:
            assert [name, *words[:2]] == ["python", "-m", "espnet2.bin.asr_train"]
            ASRTask.main(cmd=words[2:])
    return printed


@pytest.mark.slow
def test_the_readme_by_hand(tmp_path, monkeypatch, capsys):
    """Its YAML, in the dense one's place where it says `...`, and its commands."""
    monkeypatch.chdir(tmp_path)
    Path("exp").mkdir()
    make_data(tmp_path)
    run(tmp_path, Path("exp/dense"), **DENSE)
    dense = {k: v for k, v in (CONFIG | DENSE).items() if "sparsity" not in k}
    (lines,) = (x for x in blocks(README, "yaml") if "sparsity_scheduler" in x)
    ours = yaml.safe_load(lines.replace("...,", "").replace("...", ""))
    conf = {k: v for k, v in dense.items() if k != "optim_conf"} | ours
    for name in ("encoder_conf", "model_conf"):
        conf[name] = {**dense[name], **(ours[name] or {})}
    steps = {"warmup_steps": 2, "ramp_steps": 6, "hold_steps": 4}
    conf["sparsity_scheduler_conf"] |= steps
    conf["sparsity_goal_conf"]["target"] = 0.3
    conf["max_epoch"] = 6
    Path("prune.yaml").write_text(yaml.safe_dump(conf))
    for name in [name for name in conf if name.startswith("sparsity")]:
        del conf[name]
    conf["encoder_conf"]["units"] = []
    for name in ("optim", "keep_nbest_models", "best_model_criterion"):
        conf[name] = dense[name]
    Path("finetune.yaml").write_text(yaml.safe_dump(conf))
    more = shlex.join(data_options(tmp_path))
    steps = [line.replace("...", more) for line in commands(README) if " exp/" in line]
    (by_hand,) = (i for i, line in enumerate(steps) if "prune.yaml" in line)
    follow(steps[by_hand:], capsys)
    assert Path("report/index.html").exists()
    files = ModelDownloader("cache").download_and_unpack("pruned.zip")
    assert Speech2Text.from_pretrained(**files)


@pytest.mark.slow
def test_the_tutorial_and_the_how_tos(reader, monkeypatch, capsys):
    monkeypatch.chdir(reader)
    # a test's machine is busy, and would be told to measure again
    monkeypatch.setattr("espnet_l0prune.core.profile.NOISIEST", 3600.0)
    # a graph takes seconds to write: not all numbers of units
    monkeypatch.setattr("espnet_l0prune.deploy.profiling.SHARES", ())
    lines = commands(DOCS / "tutorial.md")
    assert len(lines) >= 8
    printed = follow(lines, capsys)
    # the commands that it tells to run are those that `adopt` prints
    told = [line.strip() for line in printed.split("Next:\n")[1].splitlines()[:3]]
    assert told == [line for line in lines if line in told]
    files = ModelDownloader("cache").download_and_unpack("exp/asr_l0/model.zip")
    assert Speech2Text.from_pretrained(**files)
    assert Path("exp/asr_l0/report/index.html").exists()

    lines = commands(DOCS / "howto.md")
    assert len(lines) >= 10
    follow(lines, capsys)
    assert Path("exp/l0prune.schema.json").read_text().startswith("{")


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(reader):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)  # as committed
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(reader)}}
    ).execute()
    drawn = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(drawn) == 2
    assert (reader / "exp/notebook/finetuned/valid.acc.ave.pth").exists()


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    """And their tables, which the build writes, are committed as it writes them."""
    sphinx = pytest.importorskip("sphinx.cmd.build")
    committed = {page: page.read_text("utf-8") for page in DOCS.glob("*.md")}
    command = ["-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    assert sphinx.main(command) == 0
    assert committed == {page: page.read_text("utf-8") for page in committed}
    options = (tmp_path / "options.html").read_text()
    assert "a number in [0.982, 1)" in options  # of open_probability
    assert "expected_sparsity" in (tmp_path / "_generated/deploy.html").read_text()


def test_the_table_of_units_has_every_kind_and_word():
    text = (DOCS / "units.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|(.*)\|$", text, re.MULTILINE)
    assert sorted(kind for kind, *_ in rows) == sorted(UNITS)
    for word, column in (("default", 1), ("paper", 2)):
        marked = {row[0] for row in rows if "x" in row[column]}
        assert marked == set(WORDS[word])


@pytest.mark.parametrize("page", sorted(p.name for p in DOCS.glob("*.md")))
def test_links_between_pages_lead_somewhere(page):
    text = (DOCS / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("http") or (DOCS / target).exists(), target

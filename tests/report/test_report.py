"""The page on experiments, from runs that were really trained."""

import datetime
import html
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from espnet_l0prune.cli import main
from espnet_l0prune.plugin.reporter import reported_seconds
from espnet_l0prune.report.curves import colour, draw_multiplier, mark
from espnet_l0prune.report.history import read_history
from espnet_l0prune.report.run import distinct_names, find_runs, read_run
from espnet_l0prune.testing.runs import CONFIG, make_data, run
from tests.report.experiments import RESULTS

pytestmark = pytest.mark.slow
EPOCHS, DRAWN = 4, 2  # all of them, and those with a picture of the structure
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)
# What a reader would notice: something wider than the page, a picture that is not there
# or reaches beyond its frame, text in a box that is too small for it.
LOOK = """
<script>
const wide = document.documentElement.scrollWidth - window.innerWidth;
const boxes = [...document.querySelectorAll("svg")].map(svg => {
  const ink = svg.getBBox(), frame = svg.viewBox.baseVal, shown = svg.clientWidth;
  const out = Math.max(frame.x - ink.x, ink.x + ink.width - frame.x - frame.width,
    frame.y - ink.y, ink.y + ink.height - frame.y - frame.height);
  return [shown, out];
});
const cut = [...document.querySelectorAll("body *:not(svg *)")].filter(
  e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).length;
parent.document.body.dataset.found = JSON.stringify(
  {width: window.innerWidth, wide: wide, boxes: boxes, cut: cut});
</script></body>"""


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """A folder of experiments: pruned, cut, and one that has just begun."""
    folder = tmp_path_factory.mktemp("exp")
    make_data(folder)
    schedule = {"warmup_steps": 1, "ramp_steps": 2, "hold_steps": 2}
    schedule = {**CONFIG["sparsity_scheduler_conf"], **schedule}
    # ESPnet's pictures take most of the time: one for each figure and epoch
    for epochs, drawn in ((DRAWN, True), (EPOCHS, False)):
        run(
            folder,
            folder / "asr_pruned",
            use_matplotlib=drawn,
            use_tensorboard=drawn,
            max_epoch=epochs,
            sparsity_scheduler_conf=schedule,
        )
    cut = ["cut", str(folder / "asr_pruned"), "--out", str(folder / "asr_cut")]
    assert main(cut) == 0
    run(
        folder,
        folder / "asr_begun",
        max_epoch=1,
        sparsity_scheduler_conf={
            **CONFIG["sparsity_scheduler_conf"],
            "warmup_steps": 1,
            "ramp_steps": 1,
            "hold_steps": 0,
        },
    )
    (folder / "RESULTS.json").write_text(json.dumps(RESULTS))
    return folder


def page_of(capsys, *words) -> str:
    assert main(["report", *map(str, words)]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split(",")[0]
    return open(last, encoding="utf-8").read()


def test_all_sections_and_files(exp, tmp_path, capsys):
    text = page_of(capsys, exp, "--out", tmp_path / "page")
    assert re.findall("<h2>(.*?)</h2>", text) == [
        "What is left",
        "Sparsity",
        "Losses",
        "Errors against costs",
        "Configurations",
    ]
    # pruned and cut are the same structure: one picture
    assert "asr_cut, asr_pruned: encoder" in text
    pictures = {p.name for p in (tmp_path / "page").iterdir()} - {"index.html"}
    names = {name.rpartition(".")[0] for name in pictures}
    assert pictures == {f"{n}.{form}" for n in names for form in ("svg", "png")}
    expected = {"sparsity_params", "multiplier_lambda", "multiplier_xi", "wer_macs"}
    assert expected | {"losses_asr_pruned", "wer_rtf"} <= names
    assert text.count("<svg") == len(names)
    assert {*re.findall('<figure id="(.*?)">', text)} == names
    assert "mathdefault" not in text  # nor other TeX, which nothing sets here
    # all figures of the table, rounded as people read them
    for cell in ("200", "100", "2,000 M", "1,000 M", "5.00", "15.00", "0.0200"):
        assert f"<td>{cell}</td>" in text
    assert "target: 0.3" in html.unescape(text)
    assert "seed: 0" in text
    # nothing comes from elsewhere
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)


def test_history_is_what_the_reporter_has(exp):
    saved = torch.load(exp / "asr_pruned/checkpoint.pth", weights_only=False)
    stats = saved["reporter"]["stats"]
    history, missing = read_history(exp / "asr_pruned")
    assert not missing
    assert len(history) == len(stats) == EPOCHS
    for epoch, (_, parts) in zip(history, sorted(stats.items()), strict=True):
        assert epoch.train["loss"] == parts["train"]["loss"]
        assert epoch.valid["acc"] == parts["valid"]["acc"]
        assert epoch.seconds >= reported_seconds(parts["train"]["time"]) > 0


def test_updates_are_counted_as_the_trainer_does(exp):
    """3 batches an epoch: with accum_grad 2, one is left over in each."""
    assert [e.update for e in read_history(exp / "asr_pruned")[0]] == [3, 6, 9, 12]
    halved, _ = read_history(exp / "asr_pruned", accum_grad=2)
    assert [e.update for e in halved] == [1, 2, 3, 4]


def test_while_training_runs(exp, tmp_path, capsys, caplog):
    """Half a checkpoint: what the epoch before left is shown; none yet, or none that is
    kept, as in plain ESPnet: no curves, and no advice to remove anything."""
    now = tmp_path / "now"
    shutil.copytree(exp / "asr_pruned", now, symlinks=True)
    content = (now / "checkpoint.pth").read_bytes()
    (now / "checkpoint.pth").write_bytes(content[: len(content) // 2])
    assert len(read_history(now)[0]) == EPOCHS - 1
    assert "3 epochs" in page_of(capsys, now, "--out", tmp_path / "a")
    (now / "checkpoint.previous.pth").unlink()
    assert read_history(now) == ([], [])
    assert "What is left" in page_of(capsys, now, "--out", tmp_path / "b")
    assert not caplog.records
    for file in now.glob("*.pth"):
        file.unlink()
    text = page_of(capsys, now, "--out", tmp_path / "c")
    assert re.findall("<h2>(.*?)</h2>", text) == ["Configurations"]


def converted(stats: dict, form: str) -> dict:
    """What ESPnet's reporter noted, as its releases save it."""
    found: dict = {}
    for epoch, parts in stats.items():
        for part, values in parts.items():
            new = found.setdefault(epoch, {}).setdefault(part, {})
            for name, value in values.items():
                if name == "time":
                    seconds = reported_seconds(value)
                    plain = {"__timedelta_seconds__": seconds}
                    old = datetime.timedelta(seconds=seconds)
                    new[name] = plain if form == "202611" else old
                else:
                    new[name] = float(value) if form == "202611" else np.float64(value)
    return found


@pytest.mark.parametrize("form", ["202511", "202511 with NumPy 1", "202611"])
def test_figures_of_any_release_are_read(form, exp, tmp_path):
    checkpoint = exp / "asr_pruned/checkpoint.pth"
    saved = torch.load(checkpoint, weights_only=False)
    saved["reporter"]["stats"] = converted(saved["reporter"]["stats"], form)
    torch.save(saved, tmp_path / "saved.pth")
    with (
        zipfile.ZipFile(tmp_path / "saved.pth") as old,
        zipfile.ZipFile(tmp_path / "checkpoint.pth", "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl") and form != "202611":
                assert b"numpy._core.multiarray" in data
                if form.endswith("NumPy 1"):
                    data = data.replace(b"numpy._core", b"numpy.core")
            new.writestr(name, data)
    assert read_history(tmp_path) == read_history(exp / "asr_pruned")


def test_a_structure_picture_each_epoch(exp):
    pictures = {p.name for p in (exp / "asr_pruned/structure").iterdir()}
    assert pictures == {f"encoder.{i}ep.png" for i in range(1, DRAWN + 1)}
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    events = accumulator.EventAccumulator(str(exp / "asr_pruned/tensorboard/train"))
    events.Reload()
    assert "structure/encoder" in events.Tags()["images"]
    assert "sparsity_expected_params" in events.Tags()["scalars"]
    assert not (exp / "asr_begun/structure").exists()  # use_matplotlib is false there


def test_names_tell_experiments_apart(exp, tmp_path, capsys):
    assert [*find_runs([exp])[0]] == ["asr_begun", "asr_cut", "asr_pruned"]
    for recipe in ("a", "b"):
        shutil.copytree(exp / "asr_cut", tmp_path / recipe / "exp/asr_cut")
        (tmp_path / recipe / "exp/RESULTS.json").write_text(json.dumps(RESULTS))
    both, _ = find_runs([tmp_path / "a/exp", tmp_path / "b/exp", tmp_path / "a/exp"])
    assert [*both] == ["a/exp/asr_cut", "b/exp/asr_cut"]
    folders = [tmp_path / "a/exp", tmp_path / "b/exp"]
    text = page_of(capsys, *folders, "--out", tmp_path / "page")
    for name in ("a/exp/dense", "a/exp/pruned", "b/exp/dense", "b/exp/pruned"):
        assert f"<th>{name}</th>" in text
    ends = distinct_names([Path("/x/y/z"), Path("/x/w/z"), Path("/v")])
    assert ends == ["y/z", "w/z", "v"]


def test_what_else_is_in_an_exp_folder_of_asr_sh(exp, tmp_path, capsys):
    """A language model is left out; what cannot be built is shown without a structure."""
    folder = tmp_path / "exp"
    shutil.copytree(exp / "asr_cut", folder / "asr_$cut$")
    lost = {"normalize": "global_mvn", "normalize_conf": {"stats_file": "gone.npz"}}
    changes = {"lm": {}, "asr_other": {"encoder": "rnn"}, "asr_lost": lost}
    for name, change in changes.items():
        shutil.copytree(exp / "asr_cut", folder / name)
        file = folder / name / "config.yaml"
        config = yaml.safe_load(file.read_text()) | change
        if name == "lm":
            del config["encoder"]
        file.write_text(yaml.safe_dump(config))
    text = page_of(capsys, folder, "--out", tmp_path / "page")
    assert "<h1>asr_$cut$, asr_lost, asr_other</h1>" in text
    assert "<p>asr_other: " in text
    assert re.search("<p>asr_lost: .*names a file that cannot be read .*gone.npz", text)
    assert "encoder, " in text  # of the other


def test_every_part_has_its_multiplier(exp, tmp_path, capsys):
    run(
        exp,
        tmp_path / "parts",
        sparsity_scheduler_conf={
            **CONFIG["sparsity_scheduler_conf"], "target": 0.1, "per": "block",
        },
        max_epoch=5,
    )  # fmt: skip
    drawn = Figure().subplots()
    draw_multiplier(drawn, [read_run(tmp_path / "parts", "parts")], "lambda")
    assert len(drawn.lines) == 3  # the front end, and two blocks
    assert all(np.isfinite(line.get_ydata()).all() for line in drawn.lines)


def test_what_cannot_be_shown_is_said(exp, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "no folder in it is an experiment of a recog" in capsys.readouterr().err
    torch.save({"reporter": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="Expected the checkpoint of an ESPnet training"):
        read_history(tmp_path)


def test_pictures_of_an_earlier_page_go(exp, tmp_path, capsys):
    for name in ("a/b", "a_b"):  # the same name of a file
        shutil.copytree(exp / "asr_pruned", tmp_path / "exp" / name, symlinks=True)
    shutil.copytree(exp / "asr_cut", tmp_path / "exp/b")
    both = [tmp_path / "exp" / name for name in ("a/b", "a_b", "b")]
    page_of(capsys, *both, "--out", tmp_path / "page")
    (tmp_path / "page/mine.svg").write_text("")
    losses = {p.name for p in (tmp_path / "page").glob("losses_*.svg")}
    assert losses == {"losses_a_b.svg", "losses_a_b.2.svg"}
    page_of(capsys, tmp_path / "exp/b", "--out", tmp_path / "page")
    left = {p.name for p in (tmp_path / "page").glob("*.svg")}
    assert left == {"structure_b_encoder.svg", "mine.svg"}


def test_a_package_that_is_missing(exp, tmp_path, capsys):
    shutil.copytree(exp / "asr_cut", tmp_path / "a")
    config = yaml.safe_load((tmp_path / "a/config.yaml").read_text())
    config |= {"input_size": None, "frontend": "s3prl", "frontend_conf": {}}
    del config["accum_grad"]
    (tmp_path / "a/config.yaml").write_text(yaml.safe_dump(config))
    text = page_of(capsys, tmp_path / "a", exp / "asr_cut", "--out", tmp_path / "page")
    assert "<p>a: " in text
    assert "asr_cut: encoder" in text


def test_many_models_look_different():
    looks = {(mark(i), colour(i)) for i in range(42)}
    assert len(looks) == 42


def test_a_page_of_another_is_not_replaced(exp, tmp_path, capsys):
    page_of(capsys, exp / "asr_cut", "--out", tmp_path)
    page_of(capsys, exp / "asr_cut", "--out", tmp_path)  # its own is
    (tmp_path / "index.html").write_text("my own page")
    assert main(["report", str(exp / "asr_cut"), "--out", str(tmp_path)]) == 1
    assert "was not written by report; choose another" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "my own page"


def test_no_code_of_a_checkpoint_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "trace"), "w")

    torch.save({"reporter": {"stats": Bomb()}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        read_history(tmp_path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the page in")
@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_in_a_browser(width, exp, tmp_path, capsys):
    text = page_of(capsys, exp, "--out", tmp_path)
    page = tmp_path / "looked_at.html"
    inside = html.escape(text.replace("</body>", LOOK))
    # a window of a browser is wider than a phone's
    page.write_text(
        f'<body><iframe srcdoc="{inside}" width="{width}" height="2000" '
        'style="border: 0"></iframe></body>',
        encoding="utf-8",
    )
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *OPTIONS, profile, "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CONSOLE" not in shown.stderr
    found = json.loads(html.unescape(re.search('data-found="(.*?)"', shown.stdout)[1]))
    assert found["width"] == width
    assert found["wide"] <= 0
    assert found["cut"] == 0
    assert len(found["boxes"]) == text.count("<svg")
    for shown_width, out in found["boxes"]:
        assert shown_width > 200
        assert out <= 1

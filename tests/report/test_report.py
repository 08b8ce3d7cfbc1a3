"""The page on experiments, from runs that were really trained."""

import html
import json
import re
import shutil
import subprocess

import pytest
import torch
from runs import CONFIG, make_data, run

from espnet_l0prune.cli import main
from espnet_l0prune.report.history import read_history
from espnet_l0prune.report.page import CSS
from espnet_l0prune.report.results import read_results
from espnet_l0prune.report.run import find_runs

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
RESULTS = {
    "seconds": 10,
    "machine": "here",
    "models": {
        name: {
            "encoder_parameters": 100 * n,
            "parameters": 200 * n,
            "macs": 10**9 * n,
            "rtf": 0.01 * n,
            "wer": {"clean": 0.05, "other": 0.15},
            "cer": {"clean": 0.02, "other": 0.05},
        }
        for name, n in (("dense", 2), ("pruned", 1))
    },
}


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """A folder of experiments: pruned, cut, and one that has just begun."""
    folder = tmp_path_factory.mktemp("exp")
    make_data(folder)
    changes = {"use_matplotlib": True, "use_tensorboard": True}
    run(folder, folder / "asr_pruned", **changes)
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
    first = capsys.readouterr().out.split(",")[0]
    return open(first, encoding="utf-8").read()


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
    assert text.count("structure_") == 0
    pictures = {p.name for p in (tmp_path / "page").iterdir()} - {"index.html"}
    names = {name.rpartition(".")[0] for name in pictures}
    assert pictures == {f"{n}.{form}" for n in names for form in ("svg", "png")}
    expected = {"sparsity_params", "multiplier_lambda", "multiplier_xi", "wer_macs"}
    assert expected | {"losses_asr_pruned", "wer_rtf"} <= names
    assert text.count("<svg") == len(names)
    # all figures of the table, rounded as people read them
    for cell in ("200", "100", "2,000 M", "1,000 M", "5.00", "15.00", "0.0200"):
        assert f"<td>{cell}</td>" in text
    assert "target: 0.3" in html.unescape(text)
    # nothing comes from elsewhere
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text).replace(CSS, "")


def test_history_is_what_the_reporter_has(exp):
    saved = torch.load(exp / "asr_pruned/checkpoint.pth", weights_only=False)
    stats = saved["reporter"]["stats"]
    history = read_history(exp / "asr_pruned")
    assert len(history) == len(stats) == CONFIG["max_epoch"]
    for epoch, (_, parts) in zip(history, sorted(stats.items()), strict=True):
        assert epoch.train["loss"] == parts["train"]["loss"]
        assert epoch.valid["acc"] == parts["valid"]["acc"]
        assert epoch.seconds >= parts["train"]["time"].total_seconds()
    assert [epoch.update for epoch in history] == [3 * i for i in range(1, 7)]
    assert read_history(exp / "asr_pruned", accum_grad=3)[-1].update == 6


def test_while_training_runs(exp, tmp_path, capsys):
    """Half a checkpoint: what the epoch before left is shown; none yet: no curves."""
    now = tmp_path / "now"
    shutil.copytree(exp / "asr_pruned", now, symlinks=True)
    content = (now / "checkpoint.pth").read_bytes()
    (now / "checkpoint.pth").write_bytes(content[: len(content) // 2])
    assert len(read_history(now)) == CONFIG["max_epoch"] - 1
    assert "5 epochs" in page_of(capsys, now, "--out", tmp_path / "a")
    for file in now.glob("*.pth"):
        file.unlink()
    text = page_of(capsys, now, "--out", tmp_path / "b")
    assert re.findall("<h2>(.*?)</h2>", text) == ["Configurations"]


def test_a_structure_picture_each_epoch(exp):
    pictures = {p.name for p in (exp / "asr_pruned/structure").iterdir()}
    assert pictures == {f"encoder.{i}ep.png" for i in range(1, CONFIG["max_epoch"] + 1)}
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    events = accumulator.EventAccumulator(str(exp / "asr_pruned/tensorboard/train"))
    events.Reload()
    assert "structure/encoder" in events.Tags()["images"]
    assert "sparsity_expected_params" in events.Tags()["scalars"]
    assert not (exp / "asr_begun/structure").exists()  # use_matplotlib is false there


def test_names_tell_experiments_apart(exp, tmp_path):
    assert [*find_runs([exp])] == ["asr_begun", "asr_cut", "asr_pruned"]
    other = tmp_path / "other"
    shutil.copytree(exp / "asr_cut", other / "asr_cut")
    both = find_runs([exp / "asr_cut", other])
    assert [*both] == [f"{exp.name}/asr_cut", "other/asr_cut"]


def test_what_cannot_be_shown_is_said(exp, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert "expected an experiment, or a folder of exp" in capsys.readouterr().err
    bad = tmp_path / "bad"
    bad.mkdir()
    for content in ("{", "[]", '{"models": {"dense": {}}}'):
        (bad / "RESULTS.json").write_text(content)
        with pytest.raises(ValueError, match="expected what stage 10 of the recipe"):
            read_results(bad)
    torch.save({"reporter": {}}, bad / "checkpoint.pth")
    with pytest.raises(ValueError, match="Expected the checkpoint of an ESPnet training"):
        read_history(bad)


def test_no_code_of_a_checkpoint_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemError('code of a file has run')",)

    torch.save({"reporter": {"stats": Bomb()}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        read_history(tmp_path)


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

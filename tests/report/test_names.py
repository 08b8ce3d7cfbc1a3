"""Names that are attacks, from every place that a page takes one from."""

import datetime
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup
from matplotlib.figure import Figure

from espnet_l0prune.cli import main
from espnet_l0prune.core.text import one_line, plain
from espnet_l0prune.report import page
from espnet_l0prune.report.page import Card, Section, Table, render
from espnet_l0prune.report.pictures import Picture
from espnet_l0prune.report.run import Run
from espnet_l0prune.testing.experiments import save_experiment
from tests.disks import content

EVIL = '</pre><script>alert("x")</script>'
ESCAPING = "x/../../ESCAPED"


class Shape(HTMLParser):
    """The elements of a page, with the names of their attributes; and its label."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.label = [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, *(name for name, _ in attrs)))
        self.label = dict(attrs).get("aria-label", self.label)

    def handle_endtag(self, tag):
        self.found.append(("/" + tag,))


def page_with(text: str) -> str:
    """A page on which everything is called so."""
    run = Run(text, Path(), {text: text}, [], None, [], None, [])
    card, table = Card(Markup("/>"), text, "name"), Table([text, text], {text: [text]})
    section = Section(text, [card], table)
    return render([run, run], [text], [text, f"a {text}"], [section])


@given(st.one_of(st.text(), st.text("<>&\"'/-! =ab\n", max_size=20)))
@example(EVIL)
@example('"><img src=x onerror=alert(1)>')
@example("-->")
@example("\udcff\0")
def test_no_text_makes_an_element(text):
    shown = page_with(text)
    found = Shape(shown)
    assert found.found == Shape(page_with("a")).found
    caption = re.search("<figcaption>(.*?)</figcaption>", shown, flags=re.DOTALL)[1]
    assert html.unescape(caption) == found.label == plain(text)
    shown.encode()


def save_history(folder: Path, cost: str) -> None:
    """What ESPnet's reporter noted in two epochs, with a cost of any name."""
    figures = {
        f"sparsity_{what}_{cost}": 0.1 for what in ("target", "expected", "actual")
    }
    figures |= {"loss": 1.0, f"lambda_{cost}": 1.0, "time": datetime.timedelta(seconds=1)}
    stats = {
        epoch: {"train": {**figures, "total_count": 3 * epoch}, "valid": figures}
        for epoch in (1, 2)
    }
    torch.save({"reporter": {"stats": stats}}, folder / "checkpoint.pth")


def test_names_of_all_kinds_stay_in_the_folder(tmp_path, capsys):
    """Of runs, costs, values of options, results and test sets."""
    inside = tmp_path / "a/b/c"
    runs = [inside / "exp" / name for name in ("..x", "a\nb", EVIL.replace("/", "\\"))]
    for run, cost in zip(runs, (ESCAPING, "params", EVIL), strict=True):
        save_experiment(run, encoder="l0_conformer", model="l0_distill")
        config = yaml.safe_load((run / "config.yaml").read_text())
        config |= {"sparsity_constraint": "lagrangian", "version": EVIL, "seed": "\0"}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        save_history(run, cost)
    costs = {"encoder_parameters": 1, "parameters": 2, "macs": 3, "rtf": 0.1}
    rates = {"wer": {EVIL: 0.1, ESCAPING: 0.1}, "cer": {EVIL: 0.1, ESCAPING: 0.1}}
    models = {name: {**costs, **rates} for name in ("dense", EVIL, ESCAPING)}
    results = {"seconds": 1.0, "models": models}
    (inside / "exp/RESULTS.json").write_text(json.dumps(results))
    before, out = content(tmp_path), inside / "page"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    after = content(tmp_path)
    new = {name for name in after if name not in before}
    assert all(name.startswith("a/b/c/page") for name in new)
    assert all(Path(name).parent.name == "page" for name in new - {"a/b/c/page"})
    assert "a/b/c/page/sparsity_params.svg" in new
    assert not any("ESCAPED" in name for name in new)
    text = (out / "index.html").read_text("utf-8")
    tags = {tag for tag, *_ in Shape(text).found}
    assert not tags & {"script", "img", "iframe", "a", "b", "object", "embed"}
    attributes = {name for _, *names in Shape(text).found for name in names}
    assert not any(name.startswith("on") for name in attributes)


def test_any_number_of_experiments_may_have_one_name(tmp_path):
    """Also where capital letters make no difference."""
    taken = {}
    for i in range(120):
        name = ("losses_a/b", "losses_a_b", "losses_A_B")[i % 3]
        _, files = page.draw(
            Picture(Figure(figsize=(0.1, 0.1)), name, ""), tmp_path, taken
        )
        assert not {f.name.casefold() for f in files} & {f.name.casefold() for f in taken}
        taken |= files
    assert len(taken) == 240


def test_a_card_is_what_its_options_say(tmp_path, capsys):
    save_experiment(tmp_path / "exp")
    out, line = tmp_path / "README.md", "mit\n---\nevil: 1\n# Title\n```sh\nrm -rf ~\n```"
    name = f'me/it"); import os\n{line}'
    words = ["card", str(tmp_path / "exp"), "--out", str(out), "--name", name]
    more = ["--license", line, "--language", line, "--datasets", line, f"- {line}"]
    assert main([*words, *more]) == 0
    _, head, text = re.split("^---$", out.read_text("utf-8"), maxsplit=2, flags=re.M)
    found = yaml.safe_load(head)
    assert found["license"] == found["language"] == one_line(line)
    assert found["datasets"] == [one_line(line), f"- {one_line(line)}"]
    lines = text.splitlines()
    assert not {"# Title", "rm -rf ~", "evil: 1"} & {*lines}
    (load,) = (x for x in lines if "from_pretrained" in x)
    called = load.partition("=")[2].strip().partition(".")[2]
    assert eval(called, {"from_pretrained": str}) == name
    assert sum(x.startswith("# ") for x in lines) == 1

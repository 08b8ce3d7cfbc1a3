"""Sphinx: pages in Markdown, a reference from docstrings and option schemas."""

import csv
import importlib
import json
import pkgutil
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import espnet2.tasks.asr  # noqa: F401 (registers)

from espnet_l0prune import __version__
from espnet_l0prune.cli.parser import get_parser
from espnet_l0prune.core.constraints import CONSTRAINTS
from espnet_l0prune.core.ranges import RANGES
from espnet_l0prune.core.schedules import SCHEDULERS
from espnet_l0prune.plugin.schema import options, schema

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.attacks import table  # noqa: E402 (beside the package, not in it)

GENERATED = HERE / "_generated"
LAYERS = "core", "networks", "plugin", "deploy", "report", "testing"

project, release = "espnet_l0prune", __version__
autodoc_mock_imports = ["espnet3"]  # which older releases of ESPnet do not have
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs it
html_theme = "furo"
html_title = "espnet_l0prune"
exclude_patterns = ["_build", "jupyter_execute"]  # where they are built
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # many classes have a `module`


def fill(page: str, mark: str, lines: Iterable[str]) -> None:
    """Put lines between a page's `<!-- mark -->` and the next `<!-- end -->`, so that the
    page is whole on GitHub too."""
    path = HERE / page
    before, rest = path.read_text("utf-8").split(f"<!-- {mark} -->\n")
    after = rest[rest.index("<!-- end -->") :]
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(f"{before}<!-- {mark} -->\n{text}{after}", "utf-8")


def option_row(part: str, name: str, option: Mapping[str, Any], *first: str) -> str:
    """An option's line: name, default, range, what it does."""
    default = option.get("default", "")
    shown = default if isinstance(default, str) else json.dumps(default)
    text = option.get("description", "").replace("|", "\\|")
    limits = str(RANGES[part].get(name, ""))
    cells = *first, f"`{name}`", f"`{shown}`", limits, text
    return f"| {' | '.join(cells)} |"


def write_options() -> None:
    """The tables of the page of options, by signatures, docstrings and ranges."""
    columns = "| option | default | range | meaning |"
    for part in (
        "encoder_conf",
        "frontend_conf",
        "model_conf",
        "optim_conf",
        "scheduler_conf",
        "sparsity_goal_conf",
        "sparsity_scheduler_conf",
    ):
        found = schema()["properties"][part]["properties"]
        rows = [
            option_row(part, name, option)
            for name, option in found.items()
            if option and "deprecated" not in option
        ]
        fill("options.md", part, [columns, "|---|---|---|---|", *rows])
    part = "sparsity_constraint_conf"
    rows = [
        option_row(part, name, option, f"`{constraint}`")
        for constraint, cls in CONSTRAINTS.items()
        for name, option in options(cls).items()
    ]
    fill("options.md", part, [f"| constraint {columns}", "|---|---|---|---|---|", *rows])
    about = {name: cls.__doc__.split("\n\n")[0] for name, cls in SCHEDULERS.items()}
    shapes = [f"| `{name}` | {' '.join(text.split())} |" for name, text in about.items()]
    fill("options.md", "sparsity_scheduler", ["| name | ramp |", "|---|---|", *shapes])


def write_commands() -> None:
    """The help of each command."""
    (action,) = (a for a in get_parser()._actions if a.dest == "command")
    lines = ["# Commands", ""]
    for name, parser in action.choices.items():
        parser.prog = f"espnet-l0prune {name}"
        lines += [f"## `{name}`", "", "```text", parser.format_help().rstrip(), "```", ""]
    (GENERATED / "commands.md").write_text("\n".join(lines), "utf-8")


def write_hostile() -> None:
    """The table of what is promised of files of strangers, and of what was tried."""
    fill("hostile.md", "attacks", table())


def write_matrix() -> None:
    """The last result of each cell of the matrix, as `make matrix` has kept them."""
    rows = map(json.loads, (HERE / "matrix.jsonl").read_text("utf-8").splitlines())
    versions = "python", "espnet", "torch", "torchaudio", "numpy"
    lines = [
        f"| {' | '.join(versions)} | tests | passed | failed | skipped | date | code |",
        f"|{'---|' * (len(versions) + 6)}",
    ]
    for row in {row["cell"]: row for row in rows}.values():
        tests = "all" if row["full"] else "a line"
        failed = row["failures"] + row["errors"]
        passed = row["tests"] - failed - row["skipped"]
        cells = tests, passed, failed, row["skipped"], row["date"], row["code"]
        cells = [*(row[name] for name in versions), *cells]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    fill("matrix.md", "matrix", lines)


def write_served() -> None:
    """What came of each configuration of ESPnet's recipes, by encoder and by task."""
    with (HERE.parent / "benchmarks/recipes.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    tasks, passed, there = ("asr", "slu", "st", "mt", "s2t"), Counter(), Counter()
    for row in rows:
        for encoder in (row["encoder"], "all"):
            for task in (row["task"], "all"):
                there[encoder, task] += 1
                passed[encoder, task] += row["outcome"] == "ok"
    encoders = sorted(
        {row["encoder"] for row in rows}, key=lambda e: (-there[e, "all"], e)
    )
    lines = [f"| encoder | {' | '.join(tasks)} | all |", f"|{'---|' * (len(tasks) + 2)}"]
    for encoder in [*encoders, "all"]:
        cells = [
            f"{passed[encoder, task]} / {there[encoder, task]}"
            if there[encoder, task]
            else ""
            for task in (*tasks, "all")
        ]
        lines.append(f"| {encoder} | {' | '.join(cells)} |")
    fill("served.md", "served", lines)
    reasons = Counter(r["message"].split(";")[0] for r in rows if r["outcome"] != "ok")
    lines = ["| message, up to its remedy | configurations |", "|---|---|"]
    lines += [f"| {text} | {count} |" for text, count in reasons.most_common()]
    fill("served.md", "refused", lines)


def write_modules() -> None:
    """A page for each layer of the package."""
    for layer in LAYERS:
        package = importlib.import_module(f"espnet_l0prune.{layer}")
        lines = [f"# `{package.__name__}`", "", package.__doc__ or "", ""]
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.endswith("_modules"):  # names of others
                continue
            whole = f"{package.__name__}.{module.name}"
            lines += [f"## `{module.name}`", "", "```{eval-rst}"]
            lines += [f".. automodule:: {whole}", "   :members:", "```", ""]
        (GENERATED / f"{layer}.md").write_text("\n".join(lines), "utf-8")


shutil.rmtree(GENERATED, ignore_errors=True)  # pages of another version
GENERATED.mkdir()
write_options()
write_commands()
write_hostile()
write_matrix()
write_served()
write_modules()

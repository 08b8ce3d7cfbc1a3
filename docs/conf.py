"""Sphinx: pages in Markdown, a reference from docstrings and option schemas."""

import importlib
import json
import pkgutil
import sys
from pathlib import Path

import espnet2.tasks.asr  # noqa: F401 (registers)

from espnet_l0prune import __version__
from espnet_l0prune.cli.parser import get_parser
from espnet_l0prune.core.ranges import RANGES
from espnet_l0prune.plugin.schema import schema

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.attacks import table  # noqa: E402 (beside the package, not in it)

GENERATED = HERE / "_generated"
LAYERS = "core", "networks", "plugin", "deploy", "report", "testing"

project, release = "espnet_l0prune", __version__
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


def write_options() -> None:
    """A table for each part of a configuration that has options of ours."""
    lines = ["# Options", "", "Of a training configuration, beside ESPnet's own.", ""]
    for part, found in schema()["properties"].items():
        if "properties" not in found:
            continue
        lines += [
            f"## `{part}`",
            "",
            "| option | default | range | |",
            "|---|---|---|---|",
        ]
        for name, option in found["properties"].items():
            if option is False:  # refused
                continue
            default = f"`{option['default']}`" if "default" in option else ""
            text = option.get("description", "").replace("|", "\\|")
            limits = RANGES[part].get(name, "")
            lines.append(f"| `{name}` | {default} | {limits} | {text} |")
        lines.append("")
    (GENERATED / "options.md").write_text("\n".join(lines), "utf-8")


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
    (GENERATED / "hostile.txt").write_text("\n".join(table()) + "\n", "utf-8")


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
    (GENERATED / "matrix.txt").write_text("\n".join(lines) + "\n", "utf-8")


def write_modules() -> None:
    """A page for each layer of the package."""
    for layer in LAYERS:
        package = importlib.import_module(f"espnet_l0prune.{layer}")
        lines = [f"# `{package.__name__}`", "", package.__doc__ or "", ""]
        for module in pkgutil.iter_modules(package.__path__):
            if module.name == "espnet_modules":  # names of ESPnet's
                continue
            whole = f"{package.__name__}.{module.name}"
            lines += [f"## `{module.name}`", "", "```{eval-rst}"]
            lines += [f".. automodule:: {whole}", "   :members:", "```", ""]
        (GENERATED / f"{layer}.md").write_text("\n".join(lines), "utf-8")


GENERATED.mkdir(exist_ok=True)
write_options()
write_commands()
write_hostile()
write_matrix()
write_modules()

"""The page on one or several experiments needs no network and no other file.

Its pictures are also written beside it, as SVG and PNG.
"""

import dataclasses
import io
import itertools
import platform
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import espnet
import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context

from espnet_l0prune import __version__
from espnet_l0prune.core.files import replace_all
from espnet_l0prune.core.text import file_name, one_line, plain
from espnet_l0prune.report.headline import headlines
from espnet_l0prune.report.pictures import (
    Picture,
    costs,
    losses,
    sizes,
    sparsities,
    structures,
)
from espnet_l0prune.report.results import Result, read_results, results_file
from espnet_l0prune.report.run import Run, distinct_names, find_runs, read_run

GENERATOR = Markup('<meta name="generator" content="espnet_l0prune report">')
# A stand-in for the text's colour, which follows the reader's background.
INK = "#010203"
STYLE = {
    "svg.fonttype": "path",
    "text.parse_math": False,  # a name may have dollars
    "svg.hashsalt": "espnet_l0prune",
    "figure.figsize": (4.4, 3.2),
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"),
        INK,
    ),
}


@dataclass(frozen=True)
class Card:
    """A `Card` is a picture as the page shows it.

    Attributes:
        svg: the SVG element, without the leading `<svg`
        caption: what the picture shows
        name: the name of its files, without their endings
    """

    svg: Markup
    caption: str
    name: str


@dataclass(frozen=True)
class Table:
    """A `Table` is plain text in columns: their heads, and each row by its first cell."""

    head: Sequence[str]
    rows: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A `Section` is a part of the page, with pictures and a table below them."""

    title: str
    cards: Sequence[Card]
    table: Table | None


@dataclass(frozen=True)
class Report:
    """A `Report` says what was written.

    Attributes:
        page: the page's file
        pictures: the pictures' files, which lie beside it
        headline: what a reader asks first, a line for each pruning; see `headlines`
        missing: what could not be read or was left out, and why
    """

    page: Path
    pictures: list[Path]
    headline: list[str]
    missing: list[str]


def write_report(
    folders: Sequence[Path], out: Path, track: Callable[[Sequence], Iterable] = iter
) -> Report:
    """Write a page on experiments, and its pictures.

    Args:
        folders: experiments, or folders of experiments
        out: the folder for index.html and the pictures
        track: iterates over the experiments, and may show the progress

    Raises:
        ValueError: a configuration that is missing or damaged; no experiment at all; a
            page in `out` that is not a report
        OSError: `out` is not writable
    """
    check_replaceable(out)
    folder_of, missing = find_runs([*folders])
    runs = [read_run(folder, name) for name, folder in track([*folder_of.items()])]
    missing += [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    decoded, problems = find_results([run.folder for run in runs])
    missing = [one_line(what) for what in [*missing, *problems]]
    results = [*itertools.chain(*decoded.values())]
    lines = [one_line(line) for line in headlines(runs, decoded)]
    earlier = pictures_of(out)
    files: dict[Path, bytes] = {}
    sections = []
    with rc_context(STYLE):
        for title, pictures, table in (
            ("What is left", structures(runs), None),
            ("Sparsity", sparsities(runs), None),
            ("Losses", losses(runs), None),
            ("Sizes", sizes(runs), None),
            ("Errors against costs", costs(results), compared(results)),
        ):
            cards = []
            for picture in pictures:
                card, drawn = draw(picture, out, taken=files)
                files |= drawn
                cards.append(card)
            if cards or table:
                sections.append(Section(title, cards, table))
    page = out / "index.html"
    text = render(runs, lines, missing, sections)
    contents = {**files, page: text.encode()}
    replace_all({p: partial(Path.write_bytes, data=c) for p, c in contents.items()})
    for file in earlier - {*files}:
        file.unlink(missing_ok=True)
    return Report(page, [*files], lines, missing)


def pictures_of(out: Path) -> set[Path]:
    """Return the pictures of an earlier page, if there is one."""
    page = out / "index.html"
    text = page.read_text("utf-8") if page.exists() else ""
    names = re.findall(r'<figure id="([\w.-]+)">', text)
    return {out / f"{name}.{kind}" for name in names for kind in ("svg", "png")}


def check_replaceable(out: Path) -> None:
    """Raise ValueError for a folder with a page that is not a report."""
    page = out / "index.html"
    if page.exists() and GENERATOR not in page.read_text("utf-8", "replace"):
        raise ValueError(
            f"{page} was not written by report; choose another --out, or move it away"
        )


def find_results(
    folders: Iterable[Path],
) -> tuple[dict[Path, list[Result]], list[str]]:
    """Return all models that were decoded, by file, and what is missing from them.

    Models of several recipes have their folders' names in front.
    """
    files = [*dict.fromkeys(filter(None, map(results_file, folders)))]
    decoded, missing = {}, []
    for name, file in zip(distinct_names([f.parent for f in files]), files, strict=True):
        try:
            models = read_results(file)
        except ValueError as e:
            missing.append(str(e))
            continue
        missing += [
            f"{file}: {model.name} has no {', '.join(model.missing)}"
            for model in models
            if model.missing
        ]
        prefix = plain(f"{name}/") if len(files) > 1 else ""
        decoded[file] = [dataclasses.replace(m, name=f"{prefix}{m.name}") for m in models]
    return decoded, missing


def compared(results: Sequence[Result]) -> Table | None:
    """Return the table of dense and pruned models, if any were decoded."""
    if not results:
        return None

    def cells(values: Iterable[float | None], form: str) -> list[str]:
        return ["" if value is None else form.format(value) for value in values]

    length = f", {results[0].seconds:g} s" if results[0].seconds else ""
    millions = [None if r.macs is None else r.macs / 1e6 for r in results]
    rows = {
        "parameters of the encoder": cells(
            (r.encoder_parameters for r in results), "{:,.0f}"
        ),
        "parameters": cells((r.parameters for r in results), "{:,.0f}"),
        f"encoder MACs{length}": cells(millions, "{:,.0f} M"),
        "encoder RTF, one thread": cells((r.rtf for r in results), "{:.4f}"),
    }
    for kind in ("wer", "cer"):
        for test in dict.fromkeys(t for r in results for t in getattr(r, kind)):
            rates = [getattr(r, kind).get(test) for r in results]
            percent = [None if rate is None else 100 * rate for rate in rates]
            rows[f"{kind.upper()} {test} (%)"] = cells(percent, "{:.2f}")
    return Table(["", *(result.name for result in results)], rows)


def draw(
    picture: Picture, out: Path, taken: Collection[Path]
) -> tuple[Card, dict[Path, bytes]]:
    """Return a picture for the page, and the content of its SVG and PNG by path.

    The files get names that are not taken, even if a file system ignores letters' case.

    Args:
        picture: the picture
        out: the folder for its files
        taken: paths of the files so far
    """
    svg, png = io.StringIO(), io.BytesIO()
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    picture.figure.savefig(svg, format="svg", transparent=True, metadata=bare)
    picture.figure.savefig(png, format="png", dpi=150, facecolor="white")
    _, _, inside = svg.getvalue().partition("<svg")
    used, first = {path.stem.casefold() for path in taken}, file_name(picture.name)
    names = itertools.chain([first], (f"{first}.{i}" for i in itertools.count(2)))
    name = next(name for name in names if name.casefold() not in used)
    files = {
        out / f"{name}.svg": f"<svg{inside}".replace(INK, "#000000").encode(),
        out / f"{name}.png": png.getvalue(),
    }
    shown = Markup(inside.replace(INK, "currentColor"))
    return Card(shown, picture.caption, name), files


def render(
    runs: Sequence[Run],
    headline: Sequence[str],
    missing: Sequence[str],
    sections: Sequence[Section],
) -> str:
    """Return the page in HTML, laid out by `templates/page.html`.

    The template escapes all text, and replaces characters that cannot be encoded or seen.
    """
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        generator=GENERATOR,
        title=", ".join(run.name for run in runs),
        headline=headline,
        missing=missing,
        sections=sections,
        configurations=[
            (run.name, yaml.safe_dump(run.config, sort_keys=False).strip())
            for run in runs
        ],
        made_by=(
            f"espnet_l0prune {__version__}, ESPnet {espnet.__version__}, torch "
            f"{torch.__version__}, Python {platform.python_version()}, "
            f"{datetime.now():%Y-%m-%d %H:%M}"
        ),
    )

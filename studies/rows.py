"""Tables and pictures of the rows of `compare.py`, from the rows alone."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from conditions import CLEAN, CONDITIONS, step_of
from matplotlib import pyplot as plt
from matplotlib.ticker import LogFormatter, StrMethodFormatter

from espnet_l0prune.plugin.structure_plot import draw_structure
from espnet_l0prune.report.bootstrap import wer_difference_interval
from espnet_l0prune.report.curves import colour, mark

matplotlib.use("Agg")
CLEAN_ALONE = [CLEAN]
ALL_BUT_CLEAN = [condition for condition in CONDITIONS if condition != CLEAN]
OURS = "l0"  # in black, which is no other's
WORST = 30  # WER (%) that is drawn: what has more is no recognizer


def read_rows(file: Path) -> list[dict]:
    text = file.read_text("utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def by_seeds(rows: list[dict]) -> dict[tuple[float, str, str], list[dict]]:
    """The rows of each budget, method and configuration, in this order."""
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        key = row["budget"], row["method"], row["config"]
        cells.setdefault(key, []).append(row)
    return dict(sorted(cells.items()))


@dataclass
class Score:
    """Errors of one or more seeds on the same utterances, or of the same speakers.

    Args:
        errors: of each utterance or speaker, summed over conditions; (seeds, utterances)
        words: of each, as often as they were heard; (utterances,). Or these are letters
    """

    errors: np.ndarray
    words: np.ndarray

    @classmethod
    def of(
        cls,
        rows: list[dict],
        conditions: Sequence[str],
        whose: str = "",
        by_speaker: bool = False,
        letters: bool = False,
    ) -> "Score":
        (step,) = {step_of(condition) for condition in conditions}
        unit, size = ("letter errors", "letters") if letters else ("errors", "words")
        found = [[row[f"{whose}{unit}"][c] for c in conditions] for row in rows]
        errors = np.array(found).sum(1)
        words = len(conditions) * np.array(rows[0][size][::step])
        if by_speaker:
            names, which = np.unique(rows[0]["speakers"][::step], return_inverse=True)
            theirs = which == np.arange(len(names))[:, None]  # (speakers, utterances)
            errors, words = errors @ theirs.T, theirs @ words
        return cls(errors, words)

    @property
    def rates(self) -> np.ndarray:
        """The WER (%) of each seed."""
        return 100 * self.errors.sum(1) / self.words.sum()

    def __str__(self) -> str:
        """The WER (%), with its standard deviation over seeds."""
        rates = self.rates
        spread = f" ± {rates.std(ddof=1):.2f}" if len(rates) > 1 else ""
        return f"{rates.mean():.2f}{spread}"

    def minus(self, other: "Score") -> tuple[float, float]:
        """95% bootstrap interval of the distance of the WER to another one's, in points;
        the errors of several seeds are averaged first."""
        mine, theirs = self.errors.mean(0), other.errors.mean(0)
        low, high = wer_difference_interval(mine, theirs, self.words)
        return 100 * low, 100 * high


def disturbed(rows: list[dict]) -> list[dict]:
    """The WER (%) under each condition, one line for each method and budget: mean and
    spread over seeds; then that of all conditions but the clean one together."""

    def line(budget: float, method: str, same: list[dict], whose: str = "") -> dict:
        rates = {c: str(Score.of(same, [c], whose)) for c in CONDITIONS}
        rates["disturbed"] = str(Score.of(same, ALL_BUT_CLEAN, whose))
        return {"budget": budget, "method": method, "seeds": len(same), **rates}

    lines = [line(0.0, "dense", rows[:1], "dense ")]
    for (budget, method, _), same in by_seeds(rows).items():
        lines.append(line(budget, method, same))
    return lines


def summary(
    rows: list[dict], against: str | None = None, by_speaker: bool = False
) -> list[dict]:
    """One line for each method and budget: mean and spread over seeds, and intervals of
    the distance to the dense model, or to another method at the same budget; whole
    utterances or all those of a speaker are drawn for them."""
    groups = by_seeds(rows)
    others = {budget: same for (budget, m, _), same in groups.items() if m == against}
    lines = []
    for (budget, method, config), same in groups.items():
        if against is not None and budget not in others:
            continue

        def change(name: str, same=same) -> str:
            ratios = [row[name] / row["dense"][name] for row in same]
            return f"{statistics.mean(ratios) - 1:+.1%}"

        line = {"budget": budget, "method": method, "config": config, "seeds": len(same)}
        for name, conditions in (("", CLEAN_ALONE), (", disturbed", ALL_BUT_CLEAN)):
            them, whose = same[:1], "dense "
            if against is not None:
                them, whose = others[budget], ""
            with_letters = all("letters" in row for row in (*same, *them))
            for unit in ("WER", "CER") if with_letters else ("WER",):
                how = by_speaker, unit == "CER"
                mine = Score.of(same, conditions, "", *how)
                low, high = mine.minus(Score.of(them, conditions, whose, *how))
                of = "" if unit == "WER" else "CER "
                line[f"{unit}{name} (%)"] = str(mine)
                versus = f"{of}against {against or 'dense'}{name} (points)"
                line[versus] = f"[{low:+.2f}, {high:+.2f}]"
        lines.append(
            line
            | {
                "encoder": change("encoder_parameters"),
                "model": change("parameters"),
                "MACs": change("macs"),
                "RTF": change("rtf"),
                "RTF, 10 s at once": change("long_rtf"),
                **training_cost(same),
            }
        )
    return lines


def training_cost(rows: list[dict]) -> dict[str, float | None]:
    """Of all that comes after the dense training, beside it."""
    mine, dense = (
        statistics.mean(row[f"{whose}training seconds"] for row in rows)
        for whose in ("", "dense ")
    )
    peaks = [row["peak MiB"] for row in rows if row["peak MiB"]]
    return {
        "training (minutes)": round(mine / 60, 1),
        "of the dense training": f"{mine / dense:.2f}" if dense else "",
        "peak memory (MiB)": max(peaks, default=None),
    }


def draw(rows: list[dict], file: Path) -> None:
    """WER, clean and disturbed, against parameters, MACs and time of the encoder; a mark
    for each row; what has a WER above `WORST` is beyond the picture."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 8), sharex="col", sharey="row")
    names = (
        ("encoder_parameters", "encoder's parameters"),
        ("macs", "MACs"),
        ("long_rtf", "RTF, 10 s at once"),
    )
    kinds = (("clean", CLEAN_ALONE), ("disturbed", ALL_BUT_CLEAN))
    methods = sorted({row["method"] for row in rows})
    for above, (kind, conditions) in zip(axes, kinds, strict=True):
        dense = Score.of(rows[:1], conditions, "dense ")
        for axis, (name, label) in zip(above, names, strict=True):
            for i, method in enumerate(methods):
                some = [row for row in rows if row["method"] == method]
                places = [row[name] / row["dense"][name] for row in some]
                rates = [Score.of([row], conditions).rates[0] for row in some]
                look = {"color": "black" if method == OURS else colour(i)}
                look |= {"ls": "none", "label": method}
                axis.plot(places, rates, marker=mark(i), **look)
            axis.axhline(dense.rates[0], color="black", linestyle=":")
            axis.set_yscale("log")
            axis.set_ylim(top=min(axis.get_ylim()[1], WORST))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.yaxis.set_minor_formatter(LogFormatter())
            axis.set_xlabel(f"{label}, of the dense model's")
        above[0].set_ylabel(f"WER (%), {kind}; dotted: dense")
    axes[0, -1].legend(fontsize="small", bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.savefig(file, bbox_inches="tight", dpi=100)


def draw_structures(rows: list[dict], file: Path) -> None:
    """What each cut leaves of every module, side by side."""
    cut = [row for same in by_seeds(rows).values() for row in same if row["modules"]]
    if not cut:
        raise SystemExit("no row is of a cut network; expected some, to draw structures")
    figure, axes = plt.subplots(
        1, len(cut), figsize=(4.4 * len(cut), 4), squeeze=False, sharey=True
    )
    for axis, row in zip(axes[0], cut, strict=True):
        draw_structure(axis, row["modules"])
        axis.set_title(f"{row['method']}, {row['budget']:.0%}, seed {row['seed']}")
    figure.savefig(file, bbox_inches="tight", dpi=120)

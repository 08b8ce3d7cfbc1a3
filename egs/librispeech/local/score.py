#!/usr/bin/env python3
"""Word and character error rates, and the table dense beside pruned.

Writes the table, and all figures as JSON beside it.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import jiwer
import numpy as np
from rich.console import Console
from rich.table import Table

from espnet_l0prune.report.bootstrap import wer_difference_interval


@dataclass
class Errors:
    """Edits and reference lengths of each utterance, (utterances,) each."""

    words: np.ndarray
    word_edits: np.ndarray
    characters: np.ndarray
    character_edits: np.ndarray

    @property
    def wer(self) -> float:
        return float(self.word_edits.sum() / self.words.sum())

    @property
    def cer(self) -> float:
        return float(self.character_edits.sum() / self.characters.sum())


def read_text(path: Path) -> dict[str, str]:
    lines = path.read_text("utf-8").splitlines()
    return {utt: text for utt, _, text in (line.partition(" ") for line in lines)}


def score(reference: dict[str, str], hypothesis: dict[str, str]) -> Errors:
    missing = sorted(set(reference) - set(hypothesis))
    if missing:
        sys.exit(
            f"score: {len(missing)} utterances were not decoded, {missing[0]} first; "
            "run stage 9 again"
        )

    def count(measure) -> tuple[np.ndarray, np.ndarray]:
        found = [measure(reference[utt], hypothesis[utt]) for utt in sorted(reference)]
        edits = [m.substitutions + m.deletions + m.insertions for m in found]
        lengths = [m.substitutions + m.deletions + m.hits for m in found]
        return np.array(lengths), np.array(edits)

    return Errors(*count(jiwer.process_words), *count(jiwer.process_characters))


def rows(measures: dict, sets: dict[str, dict[str, Errors]]) -> list[list[str]]:
    dense, pruned = measures["models"]["dense"], measures["models"]["pruned"]

    def compare(name: str, key: str, show) -> list[str]:
        change = pruned[key] / dense[key] - 1
        return [name, show(dense[key]), show(pruned[key]), f"{change:+.1%}"]

    table = [
        compare("encoder parameters", "encoder_parameters", "{:,}".format),
        compare("parameters", "parameters", "{:,}".format),
        compare(
            f"encoder MACs, {measures['seconds']} s of audio",
            "macs",
            lambda n: f"{n / 1e6:,.0f} M",
        ),
        compare("encoder RTF, one thread, by utterance", "rtf", "{:.4f}".format),
    ]
    if "long_rtf" in dense:
        name = f"encoder RTF, one thread, {measures['seconds']} s at once"
        table.append(compare(name, "long_rtf", "{:.4f}".format))
    for test, errors in sets.items():
        for kind in ("wer", "cer"):
            a, b = (getattr(errors[model], kind) for model in ("dense", "pruned"))
            change = f"{100 * (b - a):+.2f} points"
            if kind == "wer":
                low, high = wer_difference_interval(
                    errors["pruned"].word_edits,
                    errors["dense"].word_edits,
                    errors["dense"].words,
                )
                change += f" [{100 * low:+.2f}, {100 * high:+.2f}]"
            shown = [f"{kind.upper()} {test} (%)", f"{100 * a:.2f}", f"{100 * b:.2f}"]
            table.append([*shown, change])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decode", type=Path, required=True)
    parser.add_argument("--datadir", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="Markdown to write")
    args = parser.parse_args()
    measures = json.loads((args.decode / "measures.json").read_text("utf-8"))
    sets: dict[str, dict[str, Errors]] = {}
    for test in args.sets:
        reference = read_text(args.datadir / test / "text")
        sets[test] = {
            model: score(reference, read_text(args.decode / model / test / "text"))
            for model in ("dense", "pruned")
        }
    table = rows(measures, sets)
    header = ["", "dense", "pruned", "change [95% bootstrap]"]
    words = sum(int(errors["dense"].words.sum()) for errors in sets.values())
    note = f"{date.today()}, {measures['machine']}; {words} test words."
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * 4, *table]]
    args.out.write_text("\n".join(lines) + f"\n\n{note}\n", "utf-8")
    for name, model in measures["models"].items():
        for kind in ("wer", "cer"):
            model[kind] = {test: getattr(sets[test][name], kind) for test in sets}
    measures["date"] = str(date.today())
    args.out.with_suffix(".json").write_text(json.dumps(measures, indent=1), "utf-8")
    shown = Table(*header, caption=note)
    for row in table:
        shown.add_row(*row)
    Console().print(shown)


if __name__ == "__main__":
    main()

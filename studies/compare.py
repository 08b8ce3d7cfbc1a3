"""Ways to shrink the same model, on the same speech: methods x budgets x seeds.

Each cell is trained by egs/librispeech/run.sh, decoded clean and disturbed, and becomes a
row of --rows; it is not run again then. After the dense model, every method has the same
number of epochs, the same teacher, and the same options for what it shares with others.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from cells import ERRORS_FILE, Cell, Corpus, peak, within
from common import DECODE, RATE, ROOT, machine, read_test_set, table, write
from conditions import load
from methods import METHODS, AnyModel, config_of
from rows import CLEAN_ALONE, Score, disturbed, draw, draw_structures, read_rows, summary
from settings import EPOCHS

from espnet_l0prune.deploy.bench import sizes_and_times
from espnet_l0prune.deploy.inspect import inspect_experiment
from espnet_l0prune.report.history import read_history

# the encoders are timed on so many utterances, and on pieces of so many seconds
TIMED, SECONDS = 20, 10


def training_seconds(folder: Path) -> float:
    """Of all epochs of all trainings in a folder, with their validation."""
    found = [file.parent for file in within(folder, "checkpoint.pth")]
    return sum(epoch.seconds for one in found for epoch in read_history(one)[0])


def modules(cut: Path) -> dict | None:
    """The units of each module of a cut experiment, before and now; None where nothing
    was cut."""
    if not cut.exists():
        return None
    found = inspect_experiment(cut, "model.pth").rows
    return {row.module: row.units for row in found if row.units}


def errors_of(folder: Path) -> dict[str, dict[str, list[int]]]:
    """Of each utterance, by unit and condition, as `Corpus.decode` has kept them."""
    return json.loads((folder / ERRORS_FILE).read_text("utf-8"))


def costs_of(cell: Cell, waves: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Sizes and times of the encoder, dense beside pruned, on the first utterances."""
    ends = {"dense": cell.teacher, "pruned": cell.folder / "asr_finetuned"}
    models = {name: load(end).asr_model for name, end in ends.items()}
    some = [torch.from_numpy(wave) for wave in waves[:TIMED]]
    return sizes_and_times(models, some, RATE, SECONDS)


def heard(corpus: Corpus) -> dict:
    """What a row says of the test set, and of who made the row."""
    found = table(corpus.test_set / "text")
    texts = {name: found[name] for name in table(corpus.test_set / "wav.scp")}
    return {
        "words": [len(text.split()) for text in texts.values()],
        "letters": [len(text) for text in texts.values()],
        "speakers": [name.split("-")[0] for name in texts],
        # without this machine's folders
        "command": " ".join(w.rsplit("/", 1)[-1] for w in sys.argv),
        "machine": machine(),
    }


def row_of(cell: Cell) -> dict:
    """What came of a cell, from its files alone."""
    waves, _ = read_test_set(cell.corpus.test_set)
    costs = costs_of(cell, waves)
    return {
        "epochs": dict(cell.corpus.epochs),
        **costs["pruned"],
        "dense": costs["dense"],
        "training seconds": training_seconds(cell.folder),
        "dense training seconds": training_seconds(cell.dense),
        "peak MiB": peak(cell.folder),
        "dense peak MiB": peak(cell.dense),
        "modules": modules(cell.folder / "asr_cut"),
        **errors_of(cell.folder),
        **{f"dense {name}": value for name, value in errors_of(cell.dense).items()},
        **heard(cell.corpus),
    }


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--corpus", help="in LibriSpeech's layout")
    options.add_argument("--train_sets", default="train-digits")
    options.add_argument("--valid_sets", default="dev-digits")
    options.add_argument("--test_set", default="test-digits")
    options.add_argument(
        "--dense", type=Path, help="a trained experiment, for methods that take any"
    )
    options.add_argument(
        "--epochs",
        nargs=2,
        type=int,
        metavar=("PRUNE", "FINETUNE"),
        help="of these methods; default: 6 6",
    )
    options.add_argument("--adopt_args", default="", help="more options of their `adopt`")
    options.add_argument("--decode", type=Path, default=DECODE, help="how to search")
    options.add_argument("--work", type=Path, help="folder for all that is trained")
    options.add_argument("--rows", type=Path, default=ROOT / "studies/compare.jsonl")
    options.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=["l0"],
        metavar="METHOD",
        help=f"some of {', '.join(METHODS)}",
    )
    options.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.8])
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--plot", type=Path, help="draw the rows")
    options.add_argument(
        "--structures", type=Path, help="draw what is left, of --methods and --seeds"
    )
    options.add_argument(
        "--conditions", action="store_true", help="the table of speech that is not clean"
    )
    options.add_argument(
        "--against",
        choices=METHODS,
        metavar="METHOD",
        help="one to compare with, instead of dense",
    )
    options.add_argument(
        "--by_speaker", action="store_true", help="draw speakers, and not utterances"
    )
    options.add_argument("--json", type=Path, help="write the table here too")
    args = options.parse_args(argv)
    if args.corpus is not None:
        if args.work is None:
            raise SystemExit("--work is missing; expected a folder with room for models")
        sets = {"corpus": args.corpus, "train_sets": args.train_sets}
        sets["valid_sets"] = args.valid_sets
        given = [word for name, value in sets.items() for word in (f"--{name}", value)]
        others = [n for n in args.methods if not isinstance(METHODS[n], AnyModel)]
        for name in ("dense", "epochs", "adopt_args"):
            if getattr(args, name) and others:
                raise SystemExit(
                    f"--{name}: {others[0]} is made for the recipe's model and epochs; "
                    "expected l0_adopted, say"
                )
        epochs = dict(EPOCHS)
        if args.epochs:
            epochs |= zip(("prune", "finetune"), args.epochs, strict=True)
        how = args.dense, epochs, args.decode.resolve(), args.adopt_args
        corpus = Corpus(given, args.test_set, args.work.resolve(), *how)
        run_cells(corpus, args)
    rows = read_rows(args.rows)
    if not rows:
        raise SystemExit(f"{args.rows} has no rows; expected --corpus, to make some")
    lines = summary(rows, args.against, args.by_speaker)
    write(args, disturbed(rows) if args.conditions else lines)
    if args.plot:
        draw(rows, args.plot)
    if args.structures:
        mine = [row for row in rows if row["seed"] in args.seeds]
        draw_structures([r for r in mine if r["method"] in args.methods], args.structures)


def run_cells(corpus: Corpus, args: argparse.Namespace) -> None:
    """Run what is no row yet; each cell that ends is a row at once."""
    dense = corpus.dense()
    for seed, budget, method in itertools.product(args.seeds, args.budgets, args.methods):
        config = config_of(method, corpus, dense)
        cell = Cell(corpus, dense, method, budget, seed, config)
        if any(cell.key.items() <= row.items() for row in read_rows(args.rows)):
            print(f"compare: {cell.folder.name}: done before")
            continue
        search = METHODS[method](cell)
        corpus.decode(cell.folder, "asr_finetuned", search)
        row = cell.key | row_of(cell)
        with args.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"compare: {cell.folder.name}: WER {Score.of([row], CLEAN_ALONE)}%")


if __name__ == "__main__":
    main()

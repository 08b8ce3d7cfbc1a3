"""Dense models for a corpus of read English: which configuration is worth pruning?

Each of `CONFIGURATIONS` is trained by egs/librispeech/run.sh and decoded, clean and
disturbed, on a set that is neither for training nor for the test (see hold_out.py); it
becomes a row of --rows, and is not run again then. The table compares each with `base`,
with 95% intervals over speakers.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml
from cells import Corpus
from common import ROOT, write
from compare import errors_of, heard, training_seconds
from conditions import load
from rows import ALL_BUT_CLEAN, CLEAN_ALONE, Score, read_rows
from settings import RECIPE, merged, short_hash, written

BASE = {  # of the recipe's train_small.yaml, for the same model of 6 x 96
    "batch_bins": 2_000_000,
    "decoder_conf": {"num_blocks": 1},
    "model_conf": {"ctc_weight": 0.5},
    "optim_conf": {"lr": 0.003},
    "scheduler_conf": {"warmup_steps": 600},
    "specaug_conf": {"num_time_mask": 3},
}
SPEEDS = [[1.0, "speed_perturb", {"factor": factor}] for factor in (0.9, 1.1)]
CONFIGURATIONS: dict[str, dict] = {
    "base": {},
    "bpe": {},  # see OPTIONS
    "larger": {
        "encoder_conf": {"output_size": 144, "linear_units": 576, "num_blocks": 8},
        "decoder_conf": {"linear_units": 576},
    },
    "inter_ctc": {
        "encoder_conf": {"interctc_layer_idx": [3]},
        "model_conf": {"interctc_weight": 0.3},
    },
    "cr_ctc": {"model": "l0_distill", "model_conf": {"cr_ctc_weight": 0.2}},
    "speed": {
        "preprocessor_conf": {
            "fs": 16_000,
            "data_aug_effects": SPEEDS,
            "data_aug_num": [1, 1],
            "data_aug_prob": 0.667,
        }
    },
    "no_specaug": {"specaug": None},
    "more_specaug": {
        "specaug_conf": {
            "freq_mask_width_range": [0, 27],
            "time_mask_width_ratio_range": [0.0, 0.07],
            "num_time_mask": 5,
        }
    },
    "more_ctc": {"model_conf": {"ctc_weight": 0.7}},
    "dropout": {"encoder_conf": {"dropout_rate": 0.2, "attention_dropout_rate": 0.2}},
}
OPTIONS: dict[str, dict[str, object]] = {"bpe": {"token_type": "bpe", "nbpe": 150}}


def conf_of(name: str, epochs: int) -> dict:
    """What ESPnet trains with."""
    recipe = yaml.safe_load((RECIPE / "conf/train_small.yaml").read_text("utf-8"))
    return merged(recipe, BASE, CONFIGURATIONS[name], {"max_epoch": epochs})


def train_and_decode(corpus: Corpus, name: str, epochs: int, seed: int) -> dict:
    """Train one configuration, and return its row."""
    conf, options = conf_of(name, epochs), OPTIONS.get(name, {})
    key = {"name": name, "config": short_hash([conf, options]), "seed": seed}
    folder = corpus.work / "-".join(map(str, key.values()))
    train = written(folder / "train.yaml", conf)
    corpus.run(folder, 1, 4, train_config=train, seed=seed, **options)
    corpus.decode(folder, "asr_dense")
    model = load(folder / "asr_dense", corpus.search).asr_model
    return {
        **key,
        "epochs": epochs,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training seconds": training_seconds(folder),
        **errors_of(folder),
        **heard(corpus),
    }


def summary(rows: list[dict]) -> list[dict]:
    """A line for each row, the best CER first."""

    def line(row: dict) -> dict:
        shown = {"configuration": row["name"], "seed": row["seed"]}
        shown |= {"epochs": row["epochs"], "parameters (M)": row["parameters"] / 1e6}
        same = ("seed", "epochs")
        bases = [r for r in rows if r["name"] == "base"]
        bases = [r for r in bases if all(r[key] == row[key] for key in same)]
        for unit, letters in (("WER", False), ("CER", True)):
            how = "", True, letters
            mine = Score.of([row], CLEAN_ALONE, *how)
            shown[f"{unit} (%)"] = str(mine)
            for base in bases[:1]:
                low, high = mine.minus(Score.of([base], CLEAN_ALONE, *how))
                shown[f"{unit} against base"] = f"[{low:+.2f}, {high:+.2f}]"
            disturbed = Score.of([row], ALL_BUT_CLEAN, *how)
            shown[f"{unit}, disturbed (%)"] = str(disturbed)
        return shown | {"minutes": row["training seconds"] / 60}

    return sorted(map(line, rows), key=lambda shown: float(shown["CER (%)"]))


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--corpus", help="in LibriSpeech's layout")
    options.add_argument("--train_sets", default="train-ocean")
    options.add_argument("--valid_sets", default="dev-ocean")
    options.add_argument("--choice_set", default="dev2-ocean", help="to be decoded")
    options.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS)
    options.add_argument("--epochs", type=int, default=40)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--decode", type=Path, default=ROOT / "studies/ctc.yaml")
    options.add_argument("--work", type=Path, help="folder for all that is trained")
    options.add_argument("--rows", type=Path, default=ROOT / "studies/dense.jsonl")
    options.add_argument("--json", type=Path, help="write the table here too")
    args = options.parse_args(argv)
    if args.corpus is not None:
        if args.work is None:
            raise SystemExit("--work is missing; expected a folder with room for models")
        torch.set_num_threads(1)
        sets = {"corpus": args.corpus, "train_sets": args.train_sets}
        sets["valid_sets"] = args.valid_sets
        given = [word for name, value in sets.items() for word in (f"--{name}", value)]
        work, search = args.work.resolve(), args.decode.resolve()
        corpus = Corpus(given, args.choice_set, work, search=search)
        for name in args.configurations or CONFIGURATIONS:
            key = {"name": name, "seed": args.seed, "epochs": args.epochs}
            if any(key.items() <= row.items() for row in read_rows(args.rows)):
                print(f"dense: {name}: done before")
                continue
            row = train_and_decode(corpus, name, args.epochs, args.seed)
            with args.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            (shown,) = summary([row])
            print(f"dense: {name}: CER {shown['CER (%)']}, WER {shown['WER (%)']}")
    rows = read_rows(args.rows)
    if not rows:
        raise SystemExit(f"{args.rows} has no rows; expected --corpus, to make some")
    write(args, summary(rows))


if __name__ == "__main__":
    main()

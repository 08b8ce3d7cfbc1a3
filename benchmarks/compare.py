"""Ways to shrink the same model, on the same speech: methods x budgets x seeds.

Each cell ends with a packed model that egs/librispeech/run.sh has fine-tuned, decoded and
scored. A cell that was interrupted goes on; one that has ended is a row of --rows and is
not run again. The dense model is trained once, by the same recipe, and found again by the
hash of its configuration. After it, every method has the same number of epochs, the same
teacher, and the same options for what it shares with others.
"""

import copy
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jiwer
import yaml
from common import ROOT, machine, parser, start
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.compare.one_shot import IMPORTANCES, prune_at_once
from espnet_l0prune.compare.parp import prune_softly
from espnet_l0prune.core.budget import count_parameters
from espnet_l0prune.deploy.bench import encoder_macs
from espnet_l0prune.plugin.experiment import read_config

RECIPE = ROOT / "egs/librispeech"
AVERAGE = "valid.acc.ave.pth"
EPOCHS = {"train": 20, "prune": 10, "finetune": 4}
PARP_ROUNDS = 2  # of training without a mask, in the epochs of pruning
# What differs from the recipe's conf/*_small.yaml: a model of 1 M parameters, and half a
# minute of audio a batch.
SMALLER = {
    "batch_bins": 500_000,
    "encoder_conf": {"output_size": 72, "linear_units": 288},
    "decoder_conf": {"linear_units": 288},
}
# In updates: 124 are an epoch of the half corpus.
SCHEDULE = {"warmup_steps": 50, "ramp_steps": 600, "hold_steps": 350}
# Whole modules are no peers of the units that are ranked by their weights.
SINGLE = ["heads", "ffn_channels", "conv_channels", "frontend_channels"]
RANKED = {"encoder_conf": {"units": SINGLE}}


def merged(conf: Mapping, *changes: Mapping) -> dict:
    """A configuration with changes; mappings in it are merged."""
    new = copy.deepcopy(dict(conf))
    for change in changes:
        for name, value in change.items():
            both = isinstance(value, dict) and isinstance(new.get(name), dict)
            new[name] = merged(new[name], value) if both else value
    return new


def recipe_conf(name: str) -> dict:
    """The recipe's configuration `train`, `prune` or `finetune` at this size."""
    text = (RECIPE / f"conf/{name}_small.yaml").read_text("utf-8")
    return merged(yaml.safe_load(text), SMALLER, {"max_epoch": EPOCHS[name]})


def short_hash(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def written(file: Path, conf: Mapping) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(conf), sort_keys=False), "utf-8")
    return file


@dataclass
class Corpus:
    """The speech, as options of run.sh, and the folder of all work on it."""

    options: list[str]
    test: str
    work: Path

    def run(self, expdir: Path, first: int, last: int, **options: object) -> None:
        """Run stages of the recipe."""
        command = [RECIPE / "run.sh", *self.options, "--test_sets", self.test]
        command += ["--datadir", self.work / "data", "--expdir", expdir]
        command += ["--stage", first, "--stop_stage", last]
        for name, value in options.items():
            command += [f"--{name}", value]
        subprocess.run([str(word) for word in command], check=True)

    def dense(self) -> Path:
        """The folder of the dense model and its statistics, made now if need be."""
        conf = recipe_conf("train")
        folder = self.work / f"dense-{short_hash([conf, self.options])}"
        self.run(folder, 1, 4, train_config=written(folder / "train.yaml", conf))
        return folder


@dataclass
class Cell:
    """A method at a budget, with a seed."""

    corpus: Corpus
    dense: Path
    method: str
    budget: float
    seed: int

    @property
    def folder(self) -> Path:
        return self.corpus.work / f"{self.method}-{self.budget}-{self.seed}"

    @property
    def teacher(self) -> Path:
        return self.dense / "asr_dense"

    def run(self, folder: Path, first: int, last: int, **options: object) -> None:
        """Run stages of the recipe, with the dense model's statistics."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "asr_stats").exists():
            (folder / "asr_stats").symlink_to((self.dense / "asr_stats").resolve())
        self.corpus.run(folder, first, last, seed=self.seed, **options)

    def prune_conf(self, *changes: Mapping) -> dict:
        target = {"params": self.budget, "macs": self.budget}
        schedule = {"target": target, **SCHEDULE}
        return merged(
            recipe_conf("prune"), {"sparsity_scheduler_conf": schedule}, *changes
        )

    def cut_and_finetune(self, *changes: Mapping) -> None:
        """From the chosen units in asr_pruned to asr_finetuned."""
        tune = written(
            self.folder / "finetune.yaml", merged(recipe_conf("finetune"), *changes)
        )
        self.run(self.folder, 6, 7, finetune_config=tune, dense_exp=self.teacher)

    def choose(self, importance: str, source: Path) -> None:
        """Write asr_pruned by an importance."""
        pruned = self.folder / "asr_pruned"
        if not (pruned / "latest.pth").exists():
            shutil.rmtree(pruned, ignore_errors=True)
            conf = self.prune_conf(RANKED)
            prune_at_once(source, AVERAGE, conf, importance, pruned, seed=self.seed)


Method = Callable[[Cell], None]  # leaves asr_finetuned in the cell's folder


def gates(*changes: Mapping, constraint: str | None = None) -> Method:
    """L0 gates, trained as the recipe does but for some changes.

    Args:
        constraint: another one than the recipe's, with its default options
    """

    def run(cell: Cell) -> None:
        conf = cell.prune_conf(*changes)
        if constraint is not None:
            conf |= {"sparsity_constraint": constraint, "sparsity_constraint_conf": {}}
        file = written(cell.folder / "prune.yaml", conf)
        cell.run(cell.folder, 5, 5, prune_config=file, dense_exp=cell.teacher)
        cell.cut_and_finetune()

    return run


def one_shot(importance: str) -> Method:
    """Units are chosen once; all epochs are fine-tuning."""

    def run(cell: Cell) -> None:
        cell.choose(importance, cell.teacher)
        cell.cut_and_finetune({"max_epoch": EPOCHS["prune"] + EPOCHS["finetune"]})

    return run


def parp(cell: Cell) -> None:
    """Prune, train without a mask, and again; then prune once more, cut and fine-tune."""
    now, tune = cell.teacher, recipe_conf("finetune")
    del tune["encoder_conf"]["units"]
    tune |= {"encoder": "conformer", "max_epoch": EPOCHS["prune"] // PARP_ROUNDS}
    tune["model_conf"] |= teacher_of(cell)
    for i in range(PARP_ROUNDS):
        folder = cell.folder / f"round{i}"
        begin, train = folder / "begin.pth", written(folder / "train.yaml", tune)
        if not begin.exists():
            prune_softly(now, AVERAGE, cell.prune_conf(RANKED), begin)
        more = f"--init_param {begin}"
        cell.run(folder, 4, 4, train_config=train, train_args=more)
        now = folder / "asr_dense"
    cell.choose("magnitude_l2", now)
    cell.cut_and_finetune()


def from_scratch(cost: str, distilled: bool) -> Method:
    """A small Conformer that costs at most what the budget leaves; it trains for as many
    epochs as the dense model and its pruning take together."""

    def run(cell: Cell) -> None:
        conf = recipe_conf("train") | {"max_epoch": sum(EPOCHS.values())}
        if distilled:  # its blocks are of another width
            conf["model"] = "l0_distill"
            conf["model_conf"] |= {"layer_weight": 0.0, **teacher_of(cell)}
        conf["encoder_conf"] |= small_size(cell, cost)
        train = written(cell.folder / "train.yaml", conf)
        cell.run(cell.folder, 4, 4, train_config=train)
        if not (cell.folder / "asr_finetuned").exists():
            (cell.folder / "asr_finetuned").symlink_to("asr_dense")

    return run


def teacher_of(cell: Cell) -> dict[str, str]:
    return {
        "teacher_config": str(cell.teacher / "config.yaml"),
        "teacher_model_file": str(cell.teacher / AVERAGE),
    }


def small_size(cell: Cell, cost: str) -> dict[str, int]:
    """Options of the widest encoder that costs no more than the budget leaves."""
    args = read_config(cell.teacher / "config.yaml")

    def price(width: int) -> float:
        conf = {"output_size": width, "linear_units": 4 * width}
        trial = copy.deepcopy(args)
        trial.encoder_conf |= conf
        model = ASRTask.build_model(trial)
        if cost == "macs":
            return encoder_macs(model, seconds=10)
        return count_parameters(model.encoder)

    step = args.encoder_conf["attention_heads"]
    width = args.encoder_conf["output_size"]
    limit = price(width) * (1 - cell.budget)
    while price(width) > limit:
        width -= step
    return {"output_size": width, "linear_units": 4 * width}


METHODS: dict[str, Method] = {
    "l0": gates(),
    **{name: one_shot(name) for name in IMPORTANCES},
    "parp": parp,
    **{
        f"scratch_{cost}{'_distilled' * distilled}": from_scratch(cost, distilled)
        for cost in ("params", "macs")
        for distilled in (False, True)
    },
    # ablations of l0
    "l0_no_layer": gates({"model_conf": {"layer_weight": 0.0}}),
    "l0_no_prediction": gates(
        {"model_conf": {"ctc_kl_weight": 0.0, "att_kl_weight": 0.0}}
    ),
    "l0_paper_units": gates({"encoder_conf": {"units": "paper"}}),
    "l0_no_frontend": gates({"encoder_conf": {"units": [*SINGLE[:-1], "conv_modules"]}}),
    "l0_inequality": gates(constraint="inequality"),
    "l0_nupi": gates(constraint="nupi"),
    "l0_gates_only": gates({"optim_conf": {"order": "gates"}}),
}


def row_of(cell: Cell, seconds: float) -> dict:
    """What came of a cell, from its files alone."""
    decoded, data = cell.folder / "decode", cell.corpus.work / "data/test"
    measures = json.loads((decoded / "measures.json").read_text("utf-8"))["models"]
    reference = table(data / cell.corpus.test / "text")
    errors = {}
    for name in measures:
        spoken = table(decoded / name / cell.corpus.test / "text")
        found = [jiwer.process_words(reference[u], spoken[u]) for u in reference]
        errors[name] = [
            (x.substitutions + x.deletions + x.insertions, len(reference[u].split()))
            for u, x in zip(reference, found, strict=True)
        ]
    return {
        "epochs": EPOCHS,
        "WER (%)": 100 * rate(errors["pruned"]),
        "dense WER (%)": 100 * rate(errors["dense"]),
        **measures["pruned"],
        "dense": measures["dense"],
        "seconds": seconds,
        "errors": [edits for edits, _ in errors["pruned"]],
        "words": [words for _, words in errors["pruned"]],
        "command": " ".join(sys.argv),
        "machine": machine(),
    }


def rate(errors: list[tuple[int, int]]) -> float:
    return sum(edits for edits, _ in errors) / sum(words for _, words in errors)


def table(file: Path) -> dict[str, str]:
    lines = file.read_text("utf-8").splitlines()
    return {key: text for key, _, text in (line.partition(" ") for line in lines)}


def read_rows(file: Path) -> list[dict]:
    text = file.read_text("utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--corpus", help="in LibriSpeech's layout")
    options.add_argument("--train_sets", default="train-digits")
    options.add_argument("--valid_sets", default="dev-digits")
    options.add_argument("--test_set", default="test-digits")
    options.add_argument("--work", type=Path, help="folder for all that is trained")
    options.add_argument("--rows", type=Path, default=ROOT / "benchmarks/compare.jsonl")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=["l0"])
    options.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.8])
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = options.parse_args(argv)
    start(args)
    sets = {"corpus": args.corpus, "train_sets": args.train_sets}
    sets["valid_sets"] = args.valid_sets
    given = [word for name, value in sets.items() for word in (f"--{name}", value)]
    corpus = Corpus(given, args.test_set, args.work.resolve())
    dense = corpus.dense()
    configuration = short_hash([dense.name, *map(recipe_conf, EPOCHS), SCHEDULE])
    for seed in args.seeds:
        for budget in args.budgets:
            for method in args.methods:
                cell = Cell(corpus, dense, method, budget, seed)
                key = {"method": method, "budget": budget, "seed": seed}
                key["config"] = configuration
                if any(key.items() <= row.items() for row in read_rows(args.rows)):
                    print(f"compare: {cell.folder.name}: done before")
                    continue
                begin = time.monotonic()
                METHODS[method](cell)
                cell.run(cell.folder, 8, 9, dense_exp=cell.teacher)
                row = key | row_of(cell, time.monotonic() - begin)
                with args.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"compare: {cell.folder.name}: WER {row['WER (%)']:.2f}%")


if __name__ == "__main__":
    main()

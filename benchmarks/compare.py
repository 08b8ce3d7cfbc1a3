"""Ways to shrink the same model, on the same speech: methods x budgets x seeds.

Each cell ends with a packed model that egs/librispeech/run.sh has fine-tuned, decoded and
scored. A cell that was interrupted goes on; one that has ended is a row of --rows and is
not run again. The dense model is trained once, by the same recipe, and found again by the
hash of its configuration. After it, every method has the same number of epochs, the same
teacher, and the same options for what it shares with others.
"""

import argparse
import copy
import hashlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path

import jiwer
import matplotlib
import numpy as np
import yaml
from common import DECODE, ROOT, machine, table, write
from conditions import CLEAN, every_nth, measure
from espnet2.tasks.asr import ASRTask
from matplotlib import pyplot as plt

from espnet_l0prune.compare.one_shot import IMPORTANCES, prune_at_once
from espnet_l0prune.compare.parp import prune_softly
from espnet_l0prune.compare.svd import factorize
from espnet_l0prune.core.budget import COSTS, count_parameters
from espnet_l0prune.deploy.bench import encoder_macs
from espnet_l0prune.deploy.inspect import inspect_experiment
from espnet_l0prune.plugin.experiment import read_config
from espnet_l0prune.plugin.register import make_workload
from espnet_l0prune.plugin.structure_plot import draw_structure
from espnet_l0prune.report.history import read_history

matplotlib.use("Agg")
RECIPE = ROOT / "egs/librispeech"
AVERAGE = "valid.acc.ave.pth"
EPOCHS = {"train": 20, "prune": 10, "finetune": 4}
LAST_TRAINING = 7  # stage of the recipe
DISTURBED = 100  # utterances that are also decoded with noise and the like
DISTURBED_FILE = "conditions.json"
IDLE = 100 * 1024  # KiB; less is run.sh alone, with nothing left to do
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
BLOCKS = {"encoder_conf": {"units": ["blocks"]}}
SLOW = {"optim_conf": {"lr": 0.0005}}
HIDDEN_ONLY = {
    "task_weight": 0.0,
    "att_kl_weight": 0.0,
    "ctc_kl_weight": 0.0,
    "layer_loss": "l1_cosine",
}


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


def peak(expdir: Path) -> int | None:
    """The largest process's memory in MiB, of all that was run there."""
    found = [int(file.read_text()) for file in expdir.rglob("peak")]
    return max(found, default=None)


@dataclass
class Corpus:
    """The speech, as options of run.sh, and the folder of all work on it."""

    options: list[str]
    test: str
    work: Path

    def run(self, expdir: Path, first: int, last: int, **options: object) -> None:
        """Run stages of the recipe; note the peak memory of their largest process."""
        command = [RECIPE / "run.sh", *self.options, "--test_sets", self.test]
        command += ["--datadir", self.work / "data", "--expdir", expdir]
        command += ["--stage", first, "--stop_stage", last]
        for name, value in options.items():
            command += [f"--{name}", value]
        process = subprocess.Popen([str(word) for word in command])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        before = peak(expdir) or 0
        if usage.ru_maxrss > IDLE and first <= LAST_TRAINING:
            (expdir / "peak").write_text(str(max(before, usage.ru_maxrss // 1024)))

    def dense(self) -> Path:
        """The folder of the dense model and its statistics, made now if need be."""
        conf = recipe_conf("train")
        folder = self.work / f"dense-{short_hash([conf, self.options])}"
        self.run(folder, 1, 4, train_config=written(folder / "train.yaml", conf))
        self.disturb(folder, "asr_dense")
        return folder

    def disturb(self, folder: Path, name: str, decode: Path = DECODE) -> None:
        """Write the WER (%) of an experiment in a folder, by condition, there."""
        file = folder / DISTURBED_FILE
        if not file.exists():
            waves, texts = every_nth(self.work / "data/test" / self.test, DISTURBED)
            found = measure({"": folder / name}, waves, texts, decode=decode)
            rates = {condition: rate[""] for condition, rate in found.items()}
            file.write_text(json.dumps(rates), "utf-8")


@dataclass
class Cell:
    """A method at a budget, with a seed."""

    corpus: Corpus
    dense: Path
    method: str
    budget: float
    seed: int

    @property
    def key(self) -> dict:
        """What tells it from other cells: a row that has it is this cell's."""
        method = METHODS[self.method]
        settings = [
            self.dense.name,
            self.corpus.test,
            EPOCHS,
            repr(method) if is_dataclass(method) else self.method,
        ]
        if not isinstance(method, FromScratch):
            settings += [recipe_conf("prune"), recipe_conf("finetune")]
            settings += [SCHEDULE, RANKED, PARP_ROUNDS]
        return {
            "method": self.method,
            "budget": self.budget,
            "seed": self.seed,
            "config": short_hash(settings),
        }

    @property
    def folder(self) -> Path:
        return self.corpus.work / "-".join(str(value) for value in self.key.values())

    @property
    def teacher(self) -> Path:
        return self.dense / "asr_dense"

    def run(self, folder: Path, first: int, last: int, **options: object) -> None:
        """Run stages of the recipe, with the dense model's statistics."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "asr_stats").exists():
            (folder / "asr_stats").symlink_to((self.dense / "asr_stats").resolve())
        self.corpus.run(folder, first, last, seed=self.seed, **options)

    def prune_conf(self, *changes: Mapping, costs: Sequence[str] = COSTS) -> dict:
        target = dict.fromkeys(costs, self.budget)
        conf = merged(recipe_conf("prune"), {"sparsity_scheduler_conf": SCHEDULE})
        conf["sparsity_scheduler_conf"]["target"] = target
        return merged(conf, *changes)

    def finetune_conf(self, *changes: Mapping) -> dict:
        """Of what is no cut network."""
        conf = recipe_conf("finetune")
        del conf["encoder_conf"]["units"]
        conf["model_conf"] |= teacher_of(self)
        return merged(conf | {"encoder": "conformer"}, *changes)

    def cut_and_finetune(self, *changes: Mapping) -> None:
        """From the chosen units in asr_pruned to asr_finetuned."""
        tune = written(
            self.folder / "finetune.yaml", merged(recipe_conf("finetune"), *changes)
        )
        self.run(self.folder, 6, 7, finetune_config=tune, dense_exp=self.teacher)

    def cut_only(self) -> dict[str, str]:
        """From asr_pruned to asr_finetuned, which is not."""
        self.run(self.folder, 6, 6, dense_exp=self.teacher)
        self.end_with("asr_cut")
        return {"finetuned_model": "model.pth"}

    def end_with(self, name: str) -> None:
        """Let what is packed and decoded be one of the cell's experiments."""
        last = self.folder / "asr_finetuned"
        if not last.exists():
            last.symlink_to(name)

    def choose(self, importance: str, source: Path, conf: Mapping) -> None:
        """Write asr_pruned by an importance."""
        pruned = self.folder / "asr_pruned"
        if not (pruned / "latest.pth").exists():
            shutil.rmtree(pruned, ignore_errors=True)
            prune_at_once(source, AVERAGE, conf, importance, pruned, seed=self.seed)


# Leaves asr_finetuned in the cell's folder; may return options of the recipe for it.
Method = Callable[[Cell], dict[str, object] | None]


@dataclass(frozen=True)
class Gates:
    """L0 gates, trained as the recipe does but for some changes.

    Args:
        changes: to the configuration of the pruning
        constraint: another one than the recipe's, with its default options
        costs: that the budget is on
        finetune: changes to the configuration of the fine-tuning
    """

    changes: Mapping = field(default_factory=dict)
    constraint: str | None = None
    costs: tuple[str, ...] = ("params", "macs")
    finetune: Mapping = field(default_factory=dict)

    def conf(self, cell: Cell) -> dict:
        conf = cell.prune_conf(self.changes, costs=self.costs)
        if self.constraint is not None:
            conf["sparsity_constraint"] = self.constraint
            conf["sparsity_constraint_conf"] = {}
        return conf

    def prune(self, cell: Cell) -> None:
        """Train the gates: asr_pruned."""
        conf = written(cell.folder / "prune.yaml", self.conf(cell))
        cell.run(cell.folder, 5, 5, prune_config=conf, dense_exp=cell.teacher)

    def __call__(self, cell: Cell) -> None:
        self.prune(cell)
        # the same distillation to the end
        same = {"model_conf": self.changes.get("model_conf", {})}
        cell.cut_and_finetune(same, self.finetune)


def not_finetuned(cell: Cell) -> dict[str, str]:
    """All epochs are pruning, the last ones with frozen gates."""
    epochs = EPOCHS["prune"] + EPOCHS["finetune"]
    Gates({"max_epoch": epochs}).prune(cell)
    return cell.cut_only()


def one_shot(importance: str) -> Method:
    """Units are chosen once; all epochs are fine-tuning."""

    def run(cell: Cell) -> None:
        cell.choose(importance, cell.teacher, cell.prune_conf(RANKED))
        cell.cut_and_finetune({"max_epoch": EPOCHS["prune"] + EPOCHS["finetune"]})

    return run


def parp(cell: Cell) -> None:
    """Prune, train without a mask, and again; then prune once more, cut and fine-tune."""
    now = cell.teacher
    tune = cell.finetune_conf({"max_epoch": EPOCHS["prune"] // PARP_ROUNDS})
    for i in range(PARP_ROUNDS):
        folder = cell.folder / f"round{i}"
        begin, train = folder / "begin.pth", written(folder / "train.yaml", tune)
        if not begin.exists():
            prune_softly(now, AVERAGE, cell.prune_conf(RANKED), begin)
        more = f"--init_param {begin}"
        cell.run(folder, 4, 4, train_config=train, train_args=more)
        now = folder / "asr_dense"
    cell.choose("magnitude_l2", now, cell.prune_conf(RANKED))
    cell.cut_and_finetune()


def drop_layers(cell: Cell) -> None:
    """The last blocks go, as many as the parameters ask: without the front end, half of
    the MACs are nearly all blocks. All epochs are fine-tuning."""
    cell.choose("depth", cell.teacher, cell.prune_conf(BLOCKS, costs=("params",)))
    cell.cut_and_finetune({"max_epoch": EPOCHS["prune"] + EPOCHS["finetune"]})


@dataclass(frozen=True)
class LayersOnDemand:
    """One dense model, trained so that its last blocks can go without fine-tuning: with
    intermediate CTC at each block, and stochastic depth that rises with it (arXiv
    2106.09216). It trains for all epochs, and is decoded by CTC alone.

    Args:
        skip: probability that training skips the last block
        interctc_weight: of the mean of the intermediate losses
    """

    skip: float = 0.2
    interctc_weight: float = 0.3

    def conf(self) -> dict:
        conf = recipe_conf("train") | {"max_epoch": sum(EPOCHS.values())}
        blocks = conf["encoder_conf"]["num_blocks"]
        rates = [self.skip * i / blocks for i in range(1, blocks + 1)]
        places = list(range(1, blocks))
        encoder = {"interctc_layer_idx": places, "stochastic_depth_rate": rates}
        model = {"interctc_weight": self.interctc_weight}
        return merged(conf, {"encoder_conf": encoder, "model_conf": model})

    def __call__(self, cell: Cell) -> dict[str, object]:
        train = written(cell.folder / "train.yaml", self.conf())
        cell.run(cell.folder, 4, 4, train_config=train)
        prune = cell.prune_conf(BLOCKS, costs=("params",))
        cell.choose("depth", cell.folder / "asr_dense", prune)
        ctc_only = {**yaml.safe_load(DECODE.read_text("utf-8")), "ctc_weight": 1.0}
        search = written(cell.folder / "decode.yaml", ctc_only)
        return {**cell.cut_only(), "decode_config": search}


def svd(cell: Cell) -> None:
    """Layers are factored once, until the parameters are few enough: the products of the
    attention stay whatever the ranks are. All epochs are fine-tuning."""
    begin, config = cell.folder / "begin.pth", cell.folder / "train.yaml"
    if not config.exists():
        target = {"params": cell.budget}
        ranks = factorize(cell.teacher, AVERAGE, target, begin)
        epochs = EPOCHS["prune"] + EPOCHS["finetune"]
        conf = cell.finetune_conf({"max_epoch": epochs, "encoder_conf": {"ranks": ranks}})
        written(config, conf | {"encoder": "low_rank_conformer"})
    more = f"--init_param {begin}"
    cell.run(cell.folder, 4, 4, train_config=config, train_args=more)
    cell.end_with("asr_dense")


@dataclass(frozen=True)
class FromScratch:
    """A small Conformer that costs at most what the budget leaves; it trains for as many
    epochs as the dense model and its pruning take together.

    Args:
        cost: that the budget is on
        distilled: from the dense model, predictions alone
    """

    cost: str
    distilled: bool

    def __call__(self, cell: Cell) -> None:
        conf = recipe_conf("train") | {"max_epoch": sum(EPOCHS.values())}
        if self.distilled:  # its blocks are of another width
            conf["model"] = "l0_distill"
            conf["model_conf"] |= {"layer_weight": 0.0, **teacher_of(cell)}
        conf["encoder_conf"] |= small_size(cell, self.cost)
        train = written(cell.folder / "train.yaml", conf)
        cell.run(cell.folder, 4, 4, train_config=train)
        cell.end_with("asr_dense")


def teacher_of(cell: Cell) -> dict[str, str]:
    return {
        "teacher_config": str(cell.teacher / "config.yaml"),
        "teacher_model_file": str(cell.teacher / AVERAGE),
    }


def small_size(cell: Cell, cost: str) -> dict[str, int]:
    """Options of the widest encoder that costs no more than the budget leaves, with FFNs
    of four times its width, and a little more where there is room."""
    args = read_config(cell.teacher / "config.yaml")

    def price(width: int, units: int) -> float:
        trial = copy.deepcopy(args)
        trial.encoder_conf |= {"output_size": width, "linear_units": units}
        model = ASRTask.build_model(trial)
        if cost == "macs":
            return encoder_macs(model, 10, make_workload(args).fs)
        return count_parameters(model.encoder)

    step = args.encoder_conf["attention_heads"]
    width = args.encoder_conf["output_size"]
    limit = price(width, 4 * width) * (1 - cell.budget)
    while price(width, 4 * width) > limit:
        width -= step
    units = 4 * width
    while price(width, units + step) <= limit:
        units += step
    return {"output_size": width, "linear_units": units}


METHODS: dict[str, Method] = {
    "l0": Gates(),
    "l0_long": Gates(finetune={"max_epoch": 14}),
    "l0_low_rate": Gates(SLOW, finetune=SLOW),  # a quarter of the dense training's
    "l0_ranked_units": Gates(RANKED),  # those of the methods below
    "l0_blockwise": Gates({"model_conf": {"layer_input": "teacher"}}),
    **{name: one_shot(name) for name in IMPORTANCES if name != "depth"},
    "parp": parp,
    "svd": svd,
    "drop_layers": drop_layers,
    "layers_on_demand": LayersOnDemand(),
    # no loss but the distance of hidden states (DPHuBERT, arXiv 2305.17651)
    "dphubert": Gates({"model_conf": HIDDEN_ONLY}),
    "adaptive_dropout": Gates(
        {"encoder_conf": {"gate": "adaptive_dropout"}},
        constraint="controlled_l2",
        costs=("params",),  # its penalty knows one target
    ),
    **{
        f"scratch_{cost}{'_distilled' * distilled}": FromScratch(cost, distilled)
        for cost in ("params", "macs")
        for distilled in (False, True)
    },
    # ablations of l0
    "l0_no_layer": Gates({"model_conf": {"layer_weight": 0.0}}),
    "l0_no_prediction": Gates(
        {"model_conf": {"ctc_kl_weight": 0.0, "att_kl_weight": 0.0}}
    ),
    # without the front end, half of the MACs are more than half of the parameters
    "l0_paper_units": Gates(
        {"encoder_conf": {"units": "paper", "round_to": 1}}, costs=("params",)
    ),
    "l0_no_frontend": Gates(
        {"encoder_conf": {"units": [*SINGLE[:-1], "conv_modules"]}}, costs=("params",)
    ),
    "l0_inequality": Gates(constraint="inequality"),
    "l0_nupi": Gates(constraint="nupi"),
    "l0_penalty": Gates(constraint="penalty"),
    "l0_not_finetuned": not_finetuned,
    "l0_gates_only": Gates({"optim_conf": {"order": "gates"}}),
}


def training_seconds(folder: Path) -> float:
    """Of all epochs of all trainings in a folder, with their validation."""
    found = {file.parent.resolve() for file in folder.rglob("checkpoint.pth")}
    return sum(epoch.seconds for one in found for epoch in read_history(one))


def modules(cut: Path) -> dict | None:
    """The units of each module of a cut experiment, before and now; None where nothing
    was cut."""
    if not cut.exists():
        return None
    found = inspect_experiment(cut, "model.pth").rows
    return {row.module: row.units for row in found if row.units}


def row_of(cell: Cell) -> dict:
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
        "training seconds": training_seconds(cell.folder),
        "dense training seconds": training_seconds(cell.dense),
        "peak MiB": peak(cell.folder),
        "dense peak MiB": peak(cell.dense),
        "conditions": json.loads((cell.folder / DISTURBED_FILE).read_text("utf-8")),
        "dense conditions": json.loads((cell.dense / DISTURBED_FILE).read_text("utf-8")),
        "modules": modules(cell.folder / "asr_cut"),
        "errors": [edits for edits, _ in errors["pruned"]],
        "dense errors": [edits for edits, _ in errors["dense"]],
        "words": [words for _, words in errors["pruned"]],
        # without this machine's folders
        "command": " ".join(w.rsplit("/", 1)[-1] for w in sys.argv),
        "machine": machine(),
    }


def rate(errors: list[tuple[int, int]]) -> float:
    return sum(edits for edits, _ in errors) / sum(words for _, words in errors)


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


def mean_and_spread(values: list[float], digits: int) -> str:
    """With the standard deviation, where there are several."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def disturbed(rows: list[dict]) -> list[dict]:
    """The WER (%) under each condition, one line for each method and budget: mean and
    spread over seeds; then that of the mean over all conditions but the clean one."""

    def line(budget: float, method: str, found: list[dict[str, float]]) -> dict:
        means = [
            statistics.mean(r for c, r in one.items() if c != CLEAN) for one in found
        ]
        rates = {name: [one[name] for one in found] for name in found[0]}
        shown = {name: mean_and_spread(same, 1) for name, same in rates.items()}
        ends = {"seeds": len(found), **shown, "disturbed": mean_and_spread(means, 1)}
        return {"budget": budget, "method": method, **ends}

    lines = [line(0.0, "dense", [rows[0]["dense conditions"]])]
    for (budget, method, _), same in by_seeds(rows).items():
        lines.append(line(budget, method, [row["conditions"] for row in same]))
    return lines


def summary(rows: list[dict]) -> list[dict]:
    """One line for each method and budget: mean and spread over seeds."""
    lines = []
    for (budget, method, config), same in by_seeds(rows).items():

        def change(name: str, same=same) -> str:
            ratios = [row[name] / row["dense"][name] for row in same]
            return f"{statistics.mean(ratios) - 1:+.1%}"

        rates = [row["WER (%)"] for row in same]
        low, high = interval(same)
        lines.append(
            {
                "budget": budget,
                "method": method,
                "config": config,
                "seeds": len(same),
                "WER (%)": mean_and_spread(rates, 2),
                "against dense (points)": f"[{low:+.2f}, {high:+.2f}]",
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
        "of the dense training": f"{mine / dense:.2f}",
        "peak memory (MiB)": max(peaks, default=None),
    }


def interval(rows: list[dict], draws: int = 10_000) -> tuple[float, float]:
    """95% bootstrap interval, over utterances, of the WER's distance to the dense one's;
    the errors of several seeds are averaged first."""
    rng = np.random.default_rng(0)
    extra = np.mean([np.subtract(r["errors"], r["dense errors"]) for r in rows], axis=0)
    words = np.array(rows[0]["words"])
    chosen = rng.integers(len(words), size=(draws, len(words)))
    rates = 100 * extra[chosen].sum(1) / words[chosen].sum(1)
    low, high = np.quantile(rates, [0.025, 0.975])
    return float(low), float(high)


def draw(rows: list[dict], file: Path) -> None:
    """WER against parameters, MACs and time of the encoder."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), sharey=True)
    names = (
        ("encoder_parameters", "encoder's parameters"),
        ("macs", "MACs"),
        ("rtf", "RTF"),
    )
    for axis, (name, label) in zip(axes, names, strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            some = [row for row in rows if row["method"] == method]
            places = [row[name] / row["dense"][name] for row in some]
            axis.plot(places, [r["WER (%)"] for r in some], "o", label=method, alpha=0.7)
        axis.axhline(rows[0]["dense WER (%)"], color="black", linestyle=":")
        axis.set_xlabel(f"{label}, of the dense model's")
    axes[0].set_ylabel("WER (%); dotted: dense")
    axes[-1].legend(fontsize="small", bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.savefig(file, bbox_inches="tight", dpi=120)


def draw_structures(rows: list[dict], file: Path) -> None:
    """What each cut leaves of every module, side by side."""
    cut = [row for row in rows if row["modules"]]
    if not cut:
        raise SystemExit("no row is of a cut network; expected some, to draw structures")
    figure, axes = plt.subplots(
        1, len(cut), figsize=(4.4 * len(cut), 4), squeeze=False, sharey=True
    )
    for axis, row in zip(axes[0], cut, strict=True):
        draw_structure(axis, row["modules"])
        axis.set_title(f"{row['method']}, {row['budget']:.0%}, seed {row['seed']}")
    figure.savefig(file, bbox_inches="tight", dpi=120)


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--corpus", help="in LibriSpeech's layout")
    options.add_argument("--train_sets", default="train-digits")
    options.add_argument("--valid_sets", default="dev-digits")
    options.add_argument("--test_set", default="test-digits")
    options.add_argument("--work", type=Path, help="folder for all that is trained")
    options.add_argument("--rows", type=Path, default=ROOT / "benchmarks/compare.jsonl")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=["l0"])
    options.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.8])
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    options.add_argument("--plot", type=Path, help="draw the rows")
    options.add_argument(
        "--structures", type=Path, help="draw what is left in the rows of --methods"
    )
    options.add_argument(
        "--conditions", action="store_true", help="the table of speech that is not clean"
    )
    options.add_argument("--json", type=Path, help="write the table here too")
    args = options.parse_args(argv)
    if args.corpus is not None:
        if args.work is None:
            raise SystemExit("--work is missing; expected a folder with room for models")
        sets = {"corpus": args.corpus, "train_sets": args.train_sets}
        sets["valid_sets"] = args.valid_sets
        given = [word for name, value in sets.items() for word in (f"--{name}", value)]
        run_cells(Corpus(given, args.test_set, args.work.resolve()), args)
    rows = read_rows(args.rows)
    if not rows:
        raise SystemExit(f"{args.rows} has no rows; expected --corpus, to make some")
    write(args, disturbed(rows) if args.conditions else summary(rows))
    if args.plot:
        draw(rows, args.plot)
    if args.structures:
        shown = [row for row in rows if row["method"] in args.methods]
        draw_structures(shown, args.structures)


def run_cells(corpus: Corpus, args: argparse.Namespace) -> None:
    """Run what is no row yet; each cell that ends is a row at once."""
    dense = corpus.dense()
    for seed, budget, method in itertools.product(args.seeds, args.budgets, args.methods):
        cell = Cell(corpus, dense, method, budget, seed)
        if any(cell.key.items() <= row.items() for row in read_rows(args.rows)):
            print(f"compare: {cell.folder.name}: done before")
            continue
        options = METHODS[method](cell) or {}
        corpus.run(cell.folder, 8, 9, dense_exp=cell.teacher, **options)
        corpus.disturb(cell.folder, "asr_finetuned", options.get("decode_config", DECODE))
        row = cell.key | row_of(cell)
        with args.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"compare: {cell.folder.name}: WER {row['WER (%)']:.2f}%")


if __name__ == "__main__":
    main()

"""Methods that shrink a model, and the trainings they take: what `compare.py` runs.

A cell is a method at a budget, with a seed. It ends with an experiment `asr_finetuned`
that egs/librispeech/run.sh has trained; one that was interrupted goes on. The dense model
is trained once, by the same recipe, and found again by the hash of its configuration.
"""

import copy
import glob
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path

import yaml
from common import DECODE, ROOT, read_test_set
from conditions import CONDITIONS, count_errors, load, step_of
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.compare.one_shot import prune_at_once
from espnet_l0prune.compare.parp import prune_softly
from espnet_l0prune.compare.svd import factorize
from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.importance import IMPORTANCES
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.bench import encoder_macs
from espnet_l0prune.plugin.building import sample_rate_of
from espnet_l0prune.plugin.experiment import read_config

RECIPE = ROOT / "egs/librispeech"
AVERAGE = "valid.acc.ave.pth"
EPOCHS = {"train": 20, "prune": 6, "finetune": 6}
LAST_TRAINING = 7  # stage of the recipe
ERRORS_FILE = "errors.json"  # words that are wrong in each utterance, by condition
IDLE = 100 * 1024  # KiB; less is run.sh alone, with nothing left to do
PARP_ROUNDS = 2  # of training without a mask, in the epochs of pruning
# What differs from the recipe's conf/*_small.yaml: a model of 1 M parameters, and half a
# minute of audio a batch.
SMALLER = {
    "batch_bins": 500_000,
    "encoder_conf": {"output_size": 72, "linear_units": 288},
    "decoder_conf": {"linear_units": 288},
}
# In updates: 113 are an epoch of the half corpus.
SCHEDULE = {"warmup_steps": 30, "ramp_steps": 350, "hold_steps": 200}
# Whole modules are no peers of the units that are ranked by their weights.
SINGLE = ["heads", "ffn_channels", "conv_channels", "frontend_channels"]
RANKED = {"encoder_conf": {"units": SINGLE}}
BLOCKS = {"encoder_conf": {"units": ["blocks"]}}
WITH_BLOCKS = {"encoder_conf": {"units": [*SINGLE, "blocks"]}}
SLOW = {"optim_conf": {"lr": 0.0005}}
SHORT = {
    "max_epoch": 3,
    "sparsity_scheduler_conf": {"warmup_steps": 10, "ramp_steps": 180, "hold_steps": 100},
}
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


def within(folder: Path, name: str) -> set[Path]:
    """Files of a name below a folder, and below what links there lead to; each once."""
    found = glob.glob(f"{folder}/**/{name}", recursive=True)
    return {Path(file).resolve() for file in found}


def peak(folder: Path) -> int | None:
    """The largest process's memory in MiB, of all that was run there."""
    found = [int(file.read_text()) for file in within(folder, "peak")]
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
        self.decode(folder, "asr_dense")
        return folder

    @property
    def test_set(self) -> Path:
        return self.work / "data/test" / self.test

    def decode(self, folder: Path, name: str, search: Path = DECODE) -> None:
        """Write the errors of an experiment in a folder there: in all utterances of the
        test set, and in some of them under each condition."""
        if (folder / ERRORS_FILE).exists():
            return
        waves, texts = read_test_set(self.test_set)
        models = {name: load(folder / name, search)}
        errors = {}
        for condition in CONDITIONS:
            step = step_of(condition)
            found = count_errors(models, waves[::step], texts[::step], condition)
            errors[condition] = found[name]
        (folder / ERRORS_FILE).write_text(json.dumps(errors), "utf-8")


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

    def train_for_all_budgets(self, conf: Mapping) -> Path:
        """A dense model of this seed that cells of other budgets share."""
        name = f"{self.method}-{short_hash([conf, self.dense.name])}-{self.seed}"
        folder, link = self.corpus.work / name, self.folder / "shared"
        self.run(folder, 4, 4, train_config=written(folder / "train.yaml", conf))
        self.folder.mkdir(exist_ok=True)
        if not link.exists():
            link.symlink_to(folder)
        return folder / "asr_dense"

    def prune_conf(self, *changes: Mapping, costs: Sequence[str] = COSTS) -> dict:
        target = dict.fromkeys(costs, self.budget)
        conf = merged(recipe_conf("prune"), {"sparsity_scheduler_conf": SCHEDULE})
        conf["sparsity_goal_conf"] = {"target": target}
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

    def cut_only(self) -> None:
        """From asr_pruned to asr_finetuned, which is not."""
        self.run(self.folder, 6, 6, dense_exp=self.teacher)
        self.end_with("asr_cut")

    def end_with(self, name: str) -> None:
        """Let what is decoded be one of the cell's experiments."""
        last = self.folder / "asr_finetuned"
        if not last.exists():
            last.symlink_to(name)

    def choose(self, importance: str, source: Path, conf: Mapping) -> None:
        """Write asr_pruned by an importance."""
        pruned = self.folder / "asr_pruned"
        if not (pruned / "latest.pth").exists():
            shutil.rmtree(pruned, ignore_errors=True)
            prune_at_once(source, AVERAGE, conf, importance, pruned, seed=self.seed)


# Leaves asr_finetuned in the cell's folder; may return options of the search for it.
Method = Callable[[Cell], Path | None]


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


def not_finetuned(cell: Cell) -> None:
    """All epochs are pruning, the last ones with frozen gates."""
    epochs = EPOCHS["prune"] + EPOCHS["finetune"]
    Gates({"max_epoch": epochs}).prune(cell)
    cell.cut_only()


def one_shot(importance: str, conf: Mapping = RANKED) -> Method:
    """Units are chosen once; all epochs are fine-tuning."""

    def run(cell: Cell) -> None:
        cell.choose(importance, cell.teacher, cell.prune_conf(conf))
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

    def __call__(self, cell: Cell) -> Path:
        dense = cell.train_for_all_budgets(self.conf())
        prune = cell.prune_conf(BLOCKS, costs=("params",))
        cell.choose("depth", dense, prune)
        ctc_only = {**yaml.safe_load(DECODE.read_text("utf-8")), "ctc_weight": 1.0}
        cell.cut_only()
        return written(cell.folder / "decode.yaml", ctc_only)


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
            return encoder_macs(model, 10, sample_rate_of(args))
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
    "l0_short": Gates(SHORT, finetune={"max_epoch": 9}),  # prunes for 3 epochs
    "l0_low_rate": Gates(SLOW, finetune=SLOW),  # a quarter of the dense training's
    "l0_ranked_units": Gates(RANKED),  # those of the methods below
    "l0_blockwise": Gates({"model_conf": {"layer_input": "teacher"}}),
    **{name: one_shot(name) for name in IMPORTANCES if name != "depth"},
    "mope": one_shot("mope", WITH_BLOCKS),
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

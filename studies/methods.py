"""The methods that are compared, by name: each trains what a cell ends with."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path

import yaml
from cells import AVERAGE, Cell, Corpus
from common import DECODE
from espnet2.tasks.asr import ASRTask
from low_rank import TRAIN_PROGRAM
from parp import prune_softly
from settings import EPOCHS, SCHEDULE, merged, recipe_conf, short_hash, written
from svd import factorize

from espnet_l0prune.core.importance import IMPORTANCES
from espnet_l0prune.core.reading import read_yaml
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.bench import encoder_macs
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.networks.units import WORDS
from espnet_l0prune.plugin.building import build_model, sample_rate_of
from espnet_l0prune.plugin.experiment import read_config

PARP_ROUNDS = 2  # of training without a mask, in the epochs of pruning
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

# What run.sh had for digits, which was found by trying, with the phases of `l0`.
TUNED = {
    "optim_conf.gate_lr": 0.05,
    "scheduler_conf.warmup_steps": 200,
    "model_conf.layer_weight": 5.0,
    "sparsity_constraint": "lagrangian",
    "sparsity_constraint_conf.multiplier_lr": 10.0,
    "sparsity_scheduler_conf.in_epochs": "false",
    **{f"sparsity_scheduler_conf.{name}": steps for name, steps in SCHEDULE.items()},
}
FINETUNE_TUNED = {
    "model_conf.layer_weight": 5.0,
    "scheduler_conf.warmup_steps": 100,
    "keep_nbest_models": 3,
}

YAMLS = ("prune", "finetune")  # that `adopt` writes
BY_ADOPT = "# By espnet-l0prune adopt"  # their first line
DISTURBED = {"model_conf.disturb_probability": 0.5}
IMPORTANCE = {"sparsity_scheduler_conf.gate_start": "taylor"}

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


@dataclass(frozen=True)
class AnyModel:
    """A method for any dense model, by what `adopt` writes. Given are the budget, the
    epochs, and the rounding of all other methods.

    Args:
        settings: what is set besides, in prune.yaml
        finetune: what is set in finetune.yaml
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    finetune: Mapping[str, object] = field(default_factory=dict)

    def options(self, cell: Cell) -> str:
        """Of `espnet-l0prune adopt`."""
        words = [f"--params {cell.budget} --macs {cell.budget}"]
        epochs = cell.corpus.epochs
        words += [f"--epochs {epochs['prune']}"]
        words += [f"--finetune_epochs {self.last_epochs(epochs)}"]
        settings = {"encoder_conf.round_to": 8, **self.settings}
        words += [f"--set {key}={value}" for key, value in settings.items()]
        words += [f"--set_finetune {key}={value}" for key, value in self.finetune.items()]
        return " ".join([*words, cell.corpus.adopt])

    def last_epochs(self, epochs: Mapping[str, int]) -> int:
        """How many there are once the units are chosen."""
        return epochs["finetune"]


class Adopted(AnyModel):
    """L0 gates as `adopt` writes them."""

    def __call__(self, cell: Cell) -> None:
        how = {"dense_exp": cell.teacher, "prune_args": self.options(cell)}
        cell.run(cell.folder, 5, 7, **how)


class AdoptedAtPeak(Adopted):
    """The same, but the fine-tuning has the dense training's schedule of the learning
    rate, and so its peak, as it had until 2026-11-28."""

    def options(self, cell: Cell) -> str:
        dense = read_config(cell.teacher / "config.yaml")
        return f"--set_finetune scheduler={dense.scheduler} {super().options(cell)}"


@dataclass(frozen=True)
class AdoptedAtOnce(AnyModel):
    """Single units, and no whole modules, are chosen once, by an importance; all epochs
    are fine-tuning, by what `adopt` writes.

    Args:
        importance: a name in `IMPORTANCES`
        cut: options of `espnet-l0prune cut`
    """

    importance: str = "magnitude_l2_even"
    cut: str = ""

    def last_epochs(self, epochs: Mapping[str, int]) -> int:
        return epochs["prune"] + epochs["finetune"]

    def __call__(self, cell: Cell) -> None:
        adopted = cell.adopt(self.options(cell))
        conf = read_yaml(adopted / "prune.yaml")
        dense = build_model(read_config(cell.teacher / "config.yaml"))
        for part in ("encoder", "decoder"):
            has = {k for site in find_sites(getattr(dense, part)) for k in site.kinds}
            kinds = [k for k in WORDS["default"] if k in has and k != "conv_modules"]
            if conf[f"{part}_conf"].get("units"):
                conf[f"{part}_conf"]["units"] = kinds
        cell.choose(self.importance, cell.teacher, conf)
        how = {f"{name}_config": adopted / f"{name}.yaml" for name in YAMLS}
        cell.run(cell.folder, 6, 7, dense_exp=cell.teacher, cut_args=self.cut, **how)


@dataclass(frozen=True)
class AdoptedFromScratch(AnyModel):
    """A smaller model of the dense one's kind, from random weights, with the dense one's
    predictions as targets. It trains as that did, for as many epochs as that and its
    pruning take together.

    Args:
        cost: that the budget is on
        more: options of `model_conf`
    """

    cost: str = "params"
    more: Mapping[str, object] = field(default_factory=dict)

    def __call__(self, cell: Cell) -> None:
        conf = read_yaml(cell.adopt(self.options(cell)) / "finetune.yaml")
        dense = vars(read_config(cell.teacher / "config.yaml"))
        like = ("encoder", "decoder", "optim", "scheduler")
        conf |= {n: v for n, v in dense.items() if n.removesuffix("_conf") in like}
        conf["encoder_conf"] |= small_size(cell, self.cost)
        conf["init_param"] = []
        conf["max_epoch"] = dense["max_epoch"] + self.last_epochs(cell.corpus.epochs)
        conf["model_conf"] |= {"layer_weight": 0.0, **self.more}
        train = written(cell.folder / "train.yaml", conf)
        # by its first line, run.sh knows that tokens and normalization are in it
        train.write_text(f"{BY_ADOPT}\n{train.read_text('utf-8')}", "utf-8")
        cell.run(cell.folder, 4, 4, train_config=train)
        cell.end_with("asr_dense")

    def last_epochs(self, epochs: Mapping[str, int]) -> int:
        return epochs["prune"] + epochs["finetune"]


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
    attention stay whatever the ranks are. All epochs are fine-tuning, by a program that
    knows the factored encoder."""
    begin, config = cell.folder / "begin.pth", cell.folder / "train.yaml"
    if not config.exists():
        target = {"params": cell.budget}
        ranks = factorize(cell.teacher, AVERAGE, target, begin)
        epochs = EPOCHS["prune"] + EPOCHS["finetune"]
        conf = cell.finetune_conf({"max_epoch": epochs, "encoder_conf": {"ranks": ranks}})
        written(config, conf | {"encoder": "low_rank_conformer"})
    how = {"train_args": f"--init_param {begin}", "train_program": TRAIN_PROGRAM}
    cell.run(cell.folder, 4, 4, train_config=config, **how)
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
            conf["model_conf"] |= {"layer_weight": 0.0, **cell.teacher_conf}
        conf["encoder_conf"] |= small_size(cell, self.cost)
        train = written(cell.folder / "train.yaml", conf)
        cell.run(cell.folder, 4, 4, train_config=train)
        cell.end_with("asr_dense")


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
    "l0_adopted": Adopted(),
    "l0_adopted_at_peak": AdoptedAtPeak(),
    "l0_tuned": AdoptedAtPeak(TUNED, FINETUNE_TUNED),
    "l0_adopted_disturbed": Adopted(DISTURBED, DISTURBED),
    "l0_adopted_importance": Adopted(IMPORTANCE),
    "even_adopted": AdoptedAtOnce(importance="magnitude_l2_even"),
    "random_adopted": AdoptedAtOnce(importance="random"),
    "even_reconstructed": AdoptedAtOnce(cut="--reconstruct 64"),
    "scratch_adopted": AdoptedFromScratch(),
    "scratch_adopted_cr_ctc": AdoptedFromScratch(more={"cr_ctc_weight": 0.2}),
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


def config_of(name: str, corpus: Corpus, dense: Path) -> str:
    """A hash of all settings that a method's rows depend on, but for budget and seed."""
    method = METHODS[name]
    how = repr(method) if is_dataclass(method) else name
    settings = [dense.name, corpus.test, dict(corpus.epochs), how]
    if corpus.adopt or corpus.search != DECODE:
        settings += [corpus.adopt, corpus.search.read_text("utf-8")]
    if not isinstance(method, (AnyModel, FromScratch)):
        settings += [recipe_conf("prune"), recipe_conf("finetune")]
        settings += [SCHEDULE, RANKED, PARP_ROUNDS]
    return short_hash(settings)

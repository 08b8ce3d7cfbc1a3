"""Each of ESPnet's models has a kind with a teacher, under a name of ours."""

import argparse
import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from espnet2.train.class_choices import ClassChoices

from espnet_l0prune.plugin.model import L0Distilled, distilled

# Names of ESPnet's models by task. The first is what the task builds if not told another
STOCK = {
    "asr": ("espnet", "maskctc", "pit_espnet"),
    "mt": ("mt", "discrete_asr"),
    "s2t": ("espnet",),
    "s2t_ctc": ("espnet_ctc",),
    "slu": ("espnet",),
    "st": ("espnet",),
}


def _our_name(task: str, stock: str) -> str:
    return "l0_distill" if stock == STOCK[task][0] else f"l0_distill_{stock}"


NAMES = {task: {_our_name(task, x): x for x in stock} for task, stock in STOCK.items()}
ALL_NAMES = list(dict.fromkeys(name for names in NAMES.values() for name in names))


class ModelName(ClassChoices):
    """A `ModelName` is the option `model` of a task that has `model_conf` alone: st."""

    def __init__(self, stock: type):
        super().__init__("model", {"espnet": stock}, default=None, optional=True)

    def add_arguments(self, parser: Any) -> None:
        """Add the option to a parser of ESPnet's."""
        parser.add_argument(
            "--model", default=None, choices=self.choices(), help="The model type"
        )


def model_choices_of(module: ModuleType) -> ClassChoices:
    """Return the models that a task knows by name; the module is the task's."""
    known = getattr(module, "model_choices", None)
    return ModelName(module.ESPnetSTModel) if known is None else known


def kinds(task: str, stock: dict[str, type]) -> dict[str, type[L0Distilled]]:
    """Return our kinds of a task's models by their names.

    Args:
        task: short name of the task
        stock: ESPnet's classes by name
    """
    return {ours: distilled(stock[name]) for ours, name in NAMES[task].items()}


def our_name(task: str, stock: str | None) -> str:
    """Return our name for the kind of a model that has a teacher.

    Args:
        task: short name of the task
        stock: name of the model, ESPnet's or already ours; None for the task's own choice

    Raises:
        ValueError: a task or a model that has no such kind
    """
    if task not in NAMES:
        raise ValueError(
            f"the experiment is of ESPnet's {task} task, whose gates cannot be trained; "
            f"expected one of {', '.join(NAMES)}"
        )
    name = STOCK[task][0] if stock is None else stock
    if name in NAMES[task]:
        return name
    if name not in STOCK[task]:
        raise ValueError(
            f"the experiment has model: {name}, which cannot learn from a teacher here; "
            f"expected one of {', '.join(STOCK[task])}"
        )
    return _our_name(task, name)


@contextlib.contextmanager
def standing_in(module: ModuleType, args: argparse.Namespace) -> Iterator[None]:
    """Let a task build a model of ours as it builds ESPnet's, within a `with` block.

    The st task names the class in its code, and the mt task gives the arguments of
    `discrete_asr` to the model of that name alone.

    Args:
        module: the task's module
        args: the configuration
    """
    name = getattr(args, "model", None)
    with contextlib.ExitStack() as after:
        if name == "l0_distill" and not hasattr(module, "model_choices"):
            stock = module.ESPnetSTModel
            after.callback(setattr, module, "ESPnetSTModel", stock)
            module.ESPnetSTModel = distilled(stock)  # type: ignore[attr-defined]
        elif name == "l0_distill_discrete_asr":
            classes, stock = module.model_choices.classes, "discrete_asr"
            after.callback(classes.update, {stock: classes[stock]})
            after.callback(setattr, args, "model", name)
            classes[stock], args.model = classes[name], stock
        yield

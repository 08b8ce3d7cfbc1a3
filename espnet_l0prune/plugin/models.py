"""Each of ESPnet's models has a kind with a teacher, under a name of ours."""

import argparse
import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from espnet2.tasks.abs_task import AbsTask
from espnet2.train.class_choices import ClassChoices

from espnet_l0prune.plugin.model import L0Distilled, distilled

# Names of ESPnet's models by task. The first is what the task builds if not told another
STOCK = {
    "asr": ("espnet", "maskctc", "pit_espnet"),
    "asr_transducer": ("espnet",),
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


# Classes that a task names in its code, by the option of ours that replaces them: the
# class's name there, and the option's value for it
IN_CODE = {
    "st": {"model": ("ESPnetSTModel", "espnet")},
    "asr_transducer": {
        "model": ("ESPnetASRTransducerModel", "espnet"),
        "encoder": ("Encoder", "transducer"),
    },
}


class NameAlone(ClassChoices):
    """A `NameAlone` is an option of a task that has the option's `_conf` alone.

    Args:
        name: the option's name
        value: what the option is for ESPnet's class
        stock: this class, whose subclasses other values may stand for
    """

    def __init__(self, name: str, value: str, stock: type):
        super().__init__(name, {value: stock}, stock, default=None, optional=True)

    def add_arguments(self, parser: Any) -> None:
        """Add the option to a parser of ESPnet's."""
        parser.add_argument(
            f"--{self.name}",
            default=None,
            choices=self.choices(),
            help=f"The {self.name} type",
        )


def _in_code(module: ModuleType) -> dict[str, tuple[str, str]]:
    return IN_CODE.get(module.__name__.rpartition(".")[2], {})


def choices_in_code(module: ModuleType) -> list[ClassChoices]:
    """Return options for the classes that a task names in its code.

    Args:
        module: the task's module
    """
    return [
        NameAlone(option, value, getattr(module, name))
        for option, (name, value) in _in_code(module).items()
    ]


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
def standing_in(
    task: type[AbsTask], module: ModuleType, args: argparse.Namespace
) -> Iterator[None]:
    """Let a task build a model of ours as it builds ESPnet's, within a `with` block.

    Some tasks name classes in their code, and the mt task gives the arguments of
    `discrete_asr` to the model of that name alone.

    Args:
        task: the task
        module: the task's module
        args: the configuration
    """
    known = {choices.name: choices for choices in task.class_choices_list}
    with contextlib.ExitStack() as after:
        for option, (where, _) in _in_code(module).items():
            if (chosen := getattr(args, option, None)) is not None:
                after.callback(setattr, module, where, getattr(module, where))
                setattr(module, where, known[option].get_class(chosen))
        name = getattr(args, "model", None)
        if name == "l0_distill_discrete_asr":
            classes, stock = module.model_choices.classes, "discrete_asr"
            after.callback(classes.update, {stock: classes[stock]})
            after.callback(setattr, args, "model", name)
            classes[stock], args.model = classes[name], stock
        yield

"""Make ESPnet know our names, without touching its files."""

import argparse
import functools

import torch
from espnet2.tasks import abs_task
from espnet2.tasks.asr import ASRTask, encoder_choices, model_choices
from espnet2.train.class_choices import ClassChoices

from espnet_l0prune.core.controller import SparsityController
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.schedules import AbsSparsityScheduler, LinearSparsityScheduler
from espnet_l0prune.plugin.encoder import L0ConformerEncoder
from espnet_l0prune.plugin.experiment import read_mapping
from espnet_l0prune.plugin.model import L0DistillModel
from espnet_l0prune.plugin.signature import check_options

sparsity_scheduler_choices = ClassChoices(
    "sparsity_scheduler",
    classes={"linear": LinearSparsityScheduler},
    type_check=AbsSparsityScheduler,
    default=None,
    optional=True,
)


def register() -> None:
    """Enter our classes into ESPnet's registries; a second call changes nothing.

    Raises:
        RuntimeError: something else has taken one of the names
    """
    _add(encoder_choices.classes, "l0_conformer", L0ConformerEncoder, "encoder")
    _add(model_choices.classes, "l0_distill", L0DistillModel, "model")
    _add(abs_task.optim_classes, "l0_adamw", L0AdamW, "optim")
    choices = {c.name: c for c in ASRTask.class_choices_list}
    _add(choices, sparsity_scheduler_choices.name, sparsity_scheduler_choices, "option")
    if sparsity_scheduler_choices not in ASRTask.class_choices_list:
        ASRTask.class_choices_list.append(sparsity_scheduler_choices)
        ASRTask.build_model = _wrap(
            ASRTask.build_model, before=inline_structure, after=drop_unset_option
        )
        ASRTask.build_optimizers = _wrap(ASRTask.build_optimizers, after=prepare_training)


def _add(registry: dict, name: str, value: object, what: str) -> None:
    taken = registry.setdefault(name, value)
    if taken is not value:
        raise RuntimeError(
            f"the {what} name {name!r} is already taken in ESPnet by {taken}; "
            f"expected it to be free for {value}. Remove the other extension, or set "
            "ESPNET_L0PRUNE_AUTOLOAD=0 to run without espnet_l0prune."
        )


def _wrap(method, after, before=None):
    """A class method with `before(args)` and `after(args, result, ...)` around it."""
    inner = method.__func__

    @functools.wraps(inner)
    def wrapped(cls, args: argparse.Namespace, *rest, **kwargs):
        if before is not None:
            before(args)
        result = inner(cls, args, *rest, **kwargs)
        after(args, result, *rest, **kwargs)
        return result

    return classmethod(wrapped)


def inline_structure(args: argparse.Namespace) -> None:
    """Replace the path of a structure by its content, as ESPnet does with token_list."""
    conf = getattr(args, "encoder_conf", None) or {}
    path = conf.get("structure")
    if not isinstance(path, str):
        return
    expected = "the structure.yaml that `espnet-l0prune cut` wrote"
    conf["structure"] = read_mapping(path, "encoder_conf: structure", expected)


def drop_unset_option(args: argparse.Namespace, model: torch.nn.Module) -> None:
    """After ESPnet's build_model: keep our option, if unset, out of `config.yaml`.

    A machine without the plugin would reject the option even where it is null.
    """
    if getattr(args, "sparsity_scheduler", None) is None:
        for name in ("sparsity_scheduler", "sparsity_scheduler_conf"):
            vars(args).pop(name, None)


def prepare_training(
    args: argparse.Namespace,
    optimizers: list[torch.optim.Optimizer],
    model: torch.nn.Module,
) -> None:
    """After ESPnet's build_optimizers: training begins, so bring in what it needs.

    Raises:
        ValueError: a combination of options that cannot prune
    """
    if args.collect_stats:
        return
    name = getattr(args, "sparsity_scheduler", None)
    encoder = model.encoder
    gated = isinstance(encoder, L0ConformerEncoder) and bool(encoder.gated_sites())
    if gated or name is not None:
        _require(gated, "encoder", args.encoder, "l0_conformer with some `units`")
        _require(name, "sparsity_scheduler", name, "linear, or `units: []` for no gates")
        _require(isinstance(model, L0DistillModel), "model", args.model, "l0_distill")
        _require(isinstance(optimizers[0], L0AdamW), "optim", args.optim, "l0_adamw")
        dtype = args.train_dtype
        _require(dtype in ("float32", "float64"), "train_dtype", dtype, "float32")
        scheduler = make_scheduler(args)
        model.controller = SparsityController(encoder.budget(), scheduler, optimizers[0])
    if isinstance(model, L0DistillModel):
        _require(
            args.ngpu <= 1 or getattr(args, "distributed", False),
            "ngpu",
            args.ngpu,
            "1, or more with --multiprocessing_distributed true",
        )
        model.load_teacher_()


def make_scheduler(args: argparse.Namespace) -> AbsSparsityScheduler:
    """The schedule that `sparsity_scheduler` and its `_conf` ask for.

    Raises:
        ValueError: an unknown name or option, or a value that makes no sense
    """
    scheduler_class = sparsity_scheduler_choices.get_class(args.sparsity_scheduler)
    conf = args.sparsity_scheduler_conf
    check_options(scheduler_class, conf, "sparsity_scheduler_conf")
    return scheduler_class(**conf)


def _require(condition: object, option: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{option} is {value}; pruning expects {option}: {expected}")

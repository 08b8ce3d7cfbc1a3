"""ESPnet knows our classes by the names that are registered here.

Here we also step into its trainings.
"""

import argparse
import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.trainer import Trainer

from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.plugin.building import ESPNET3, TASKS, task_name
from espnet_l0prune.plugin.decay import LinearDecayLR
from espnet_l0prune.plugin.experiment import read_config
from espnet_l0prune.plugin.models import (
    ALL_NAMES,
    choices_in_code,
    kinds,
    standing_in,
)
from espnet_l0prune.plugin.moved import refuse_moved
from espnet_l0prune.plugin.network import NETWORK_KINDS
from espnet_l0prune.plugin.onnx import OnnxDecoder, OnnxEncoder
from espnet_l0prune.plugin.options import CHOICES, inline_files, settle_options
from espnet_l0prune.plugin.prepare import (
    check_optimizer,
    needs_preparation,
    prepare_training,
    require_prepared,
)
from espnet_l0prune.plugin.trainer import L0Trainer

S2T_INFERENCE = "espnet2.bin.s2t_inference"
NETWORKS: dict[str, dict[str, type]] = {
    "frontend": {**NETWORK_KINDS["frontend"]},
    "encoder": {**NETWORK_KINDS["encoder"], "onnx": OnnxEncoder},
    "decoder": {**NETWORK_KINDS["decoder"], "onnx": OnnxDecoder},
}


def register(module_name: str = "espnet2.tasks.asr") -> None:
    """Enter our classes into the registries of one of ESPnet's tasks.

    Either all of them are entered or none; a second call changes nothing.

    Args:
        module_name: the module of the task; that of ESPnet3 is a copy of asr. Or that of
            s2t's inference, which is told which models have a CTC alone.

    Raises:
        RuntimeError: another extension has taken one of the names
    """
    module = importlib.import_module(module_name)
    if module_name == S2T_INFERENCE:
        _tell_ctc_only(module)
        return
    name = "asr" if module_name == ESPNET3 else module_name.rpartition(".")[2]
    task = getattr(module, TASKS[name])
    known = {choices.name: choices for choices in task.class_choices_list}
    options = [x for x in (*choices_in_code(module), *CHOICES) if x.name not in known]
    classes = known | {choices.name: choices for choices in options}
    models = classes["model"]
    entries: list[tuple[str, dict, dict]] = [
        *(
            (part, classes[part].classes, _fitting(ours, classes[part].base_type))
            for part, ours in NETWORKS.items()
            if part in classes  # s2t_ctc has no decoder
        ),
        ("optim", abs_task.optim_classes, {"l0_adamw": L0AdamW}),
        ("scheduler", abs_task.scheduler_classes, {"l0_lineardecaylr": LinearDecayLR}),
        ("model", models.classes, kinds(name, models.classes)),
        ("option", known, {choices.name: choices for choices in CHOICES}),
    ]
    for what, registry, ours in entries:
        _require_free(what, registry, ours)
    for _, registry, ours in entries:
        registry.update(ours)
    task.class_choices_list += options
    building = functools.partial(_building, module)
    if module_name == ESPNET3:  # whose trainer calls neither of the other two
        _wrap(task, "build_model", functools.partial(_building_for_callback, building))
        return
    _wrap(task, "build_model", building)
    _wrap(task, "build_optimizers", _preparing)
    _wrap(task, "main_worker", _training)


def _tell_ctc_only(module: Any) -> None:
    """Let ESPnet's inference know OWSM-CTC under our name of the model.

    From 202609 on one program decodes both kinds of s2t models, and tells them by
    `model`; before, each had its own.
    """
    inner = getattr(module, "_is_ctc_only", None)
    if inner is None or getattr(inner, "runs_l0prune", False):
        return

    @functools.wraps(inner)
    def is_ctc_only(config_file: str | Path | None) -> bool:
        if config_file is None or inner(config_file):
            return bool(inner(config_file))
        return task_name(read_config(config_file)) == "s2t_ctc"

    is_ctc_only.runs_l0prune = True  # type: ignore[attr-defined]
    module._is_ctc_only = is_ctc_only


def _fitting(ours: Mapping[str, type], base: type | None) -> dict[str, type]:
    """Return those of our classes that a registry takes: the subclasses of its base."""
    return {k: v for k, v in ours.items() if base is None or issubclass(v, base)}


def _require_free(what: str, registry: Mapping, ours: Mapping) -> None:
    for name, value in ours.items():
        taken = registry.get(name, value)
        if taken is not value:
            raise RuntimeError(
                f"the {what} name {name!r} is already taken in ESPnet by {taken}; "
                f"expected it to be free for {value}. Remove the other extension, or set "
                "ESPNET_L0PRUNE_AUTOLOAD=0 to run without espnet_l0prune."
            )


def _wrap(task: type[AbsTask], name: str, around: Callable[[Any], Any]) -> None:
    """Wrap a class method of a task, once, also where it is inherited.

    Args:
        task: the task
        name: the method's name
        around: returns the wrapper of a function
    """
    inner = getattr(task, name).__func__
    if not getattr(inner, "runs_l0prune", False):
        wrapped: Any = functools.wraps(inner)(around(inner))
        wrapped.runs_l0prune = True
        setattr(task, name, classmethod(wrapped))


def _building(module: ModuleType, inner: Any) -> Any:
    def build_model(cls: type[AbsTask], args: argparse.Namespace) -> Any:
        refuse_moved(cls, args)
        inline_files(args)
        with standing_in(cls, module, args):
            model = inner(cls, args)
        settle_options(args)
        return model

    return build_model


def _building_for_callback(building: Any, inner: Any) -> Any:
    build = building(inner)

    def build_model(cls: type[AbsTask], args: argparse.Namespace) -> Any:
        model = build(cls, args)
        if needs_preparation(model):
            model.register_forward_pre_hook(require_prepared)
        return model

    return build_model


def _preparing(inner: Any) -> Any:
    def build_optimizers(
        cls: type[AbsTask], args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        check_optimizer(args)
        optimizers = inner(cls, args, model)
        prepare_training(cls, args, optimizers, model)
        return optimizers

    return build_optimizers


def _training(inner: Any) -> Any:
    def main_worker(cls: type[AbsTask], args: argparse.Namespace) -> None:
        """Train with our trainer, in a subclass of the task that only this run uses.

        Another run in this process has the trainer that it would have without us.
        """
        if getattr(args, "model", None) in ALL_NAMES and cls.trainer is Trainer:
            cls = type(cls.__name__, (cls,), {"trainer": L0Trainer})
        inner(cls, args)

    return main_worker

"""How a model is pruned and fine-tuned that was trained with a given configuration."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from espnet_l0prune.deploy.cut import STRUCTURE_FILES
from espnet_l0prune.networks.sites import find_sites
from espnet_l0prune.plugin.network import DECODERS, ENCODERS
from espnet_l0prune.plugin.resume import RUN

DATA = tuple(
    f"{part}_{what}"
    for part in ("train", "valid")
    for what in ("data_path_and_name_and_type", "shape_file")
)
ADAM = ("lr", "betas", "eps", "weight_decay")
LOSS = 20.0  # an utterance's, where it is not normalized by length


@dataclass
class Choice:
    """How an experiment is to be pruned.

    Args:
        target: sparsity by cost, shares in (0, 1)
        scope: `encoder`, or `model` for the decoder too
        units: as in `encoder_conf`
        epochs: of the pruning, and of the fine-tuning; a third of the training's by
            default, and at least 6 and 4
        data: whether the configurations name the training data too
        settings: further options of the pruning, as a configuration has them, which take
            the place of what is chosen for it
        finetune_settings: those of the fine-tuning
    """

    target: Mapping[str, float] = field(default_factory=lambda: {"params": 0.5})
    scope: str = "encoder"
    units: str | list[str] = "default"
    epochs: tuple[int | None, int | None] = (None, None)
    data: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    finetune_settings: Mapping[str, Any] = field(default_factory=dict)


def without_run(dense: dict, choice: Choice) -> dict:
    """The options that both trainings take over from the dense one."""
    left_out = RUN if choice.data else (*RUN, *DATA)
    return {k: v for k, v in dense.items() if k not in left_out}


def units_of(model: nn.Module, choice: Choice) -> dict[str, str | list[str]]:
    """The kinds of units for encoder and decoder: each gets those that it has. What
    neither has goes to the encoder, which refuses it by name."""
    if choice.scope == "encoder" or isinstance(choice.units, str):
        return {"encoder": choice.units, "decoder": choice.units}
    has = {
        part: {kind for site in find_sites(getattr(model, part)) for kind in site.kinds}
        for part in ("encoder", "decoder")
    }
    alone = has["decoder"] - has["encoder"]
    return {
        "encoder": [kind for kind in choice.units if kind not in alone],
        "decoder": [kind for kind in choice.units if kind in has["decoder"]],
    }


def pruning(dense: dict, choice: Choice, units: dict, files: dict[str, str]) -> dict:
    """The options in which the pruning differs from the dense training.

    Args:
        dense: the options of the dense training
        units: by `units_of`
        files: the model's options that name its teacher
    """
    epochs = choice.epochs[0] or max(_epochs(dense) // 3, 6)
    gated = {part: {"units": kinds} for part, kinds in units.items()}
    conf, like = _optim_conf(dense), is_like_adam(dense)
    conf = {k: v for k, v in conf.items() if like and k in ADAM}
    if dense.get("optim") != "adamw":  # whose default is L0AdamW's
        conf = {"weight_decay": 0.0, **conf}
    return {
        "max_epoch": epochs,
        "keep_nbest_models": 1,
        "best_model_criterion": [["valid", "loss_on_budget", "min"]],
        **_networks(dense, choice, gated),
        "model": "l0_distill",
        "model_conf": {**_conf(dense, "model"), **files},
        "optim": "l0_adamw",
        "optim_conf": conf,
        "scheduler_conf": _scheduler_conf(dense),
        "sparsity_goal_conf": {"target": dict(choice.target), "scope": choice.scope},
        "sparsity_scheduler": "linear",
        "sparsity_scheduler_conf": {
            "in_epochs": True,
            "warmup_steps": epochs / 24,
            "ramp_steps": epochs / 2,
            "hold_steps": epochs / 4,
        },
        "sparsity_constraint": "lagrangian",
        "sparsity_constraint_conf": _multipliers(dense),
    }


def _multipliers(dense: dict) -> dict[str, float]:
    """The default multipliers, on the scale of the loss."""
    normalized = _conf(dense, "model").get("length_normalized_loss", False)
    scale = 1 / LOSS if normalized else 1.0
    return {"multiplier_lr": 0.5 * scale, "lambda2": 1000.0 * scale}


def fine_tuning(dense: dict, choice: Choice, files: dict[str, str], cut: Path) -> dict:
    """The options in which the fine-tuning differs from the dense training.

    Args:
        dense: the options of the dense training
        files: the model's options that name its teacher
        cut: the folder that the cut will write
    """
    cut_down = {
        name: {"units": [], "structure": str(cut / file)}
        for name, file in STRUCTURE_FILES.items()
    }
    return {
        "max_epoch": choice.epochs[1] or max(_epochs(dense) // 3, 4),
        **_networks(dense, choice, cut_down),
        "model": "l0_distill",
        "model_conf": {**_conf(dense, "model"), **files},
        "optim_conf": _optim_conf(dense),
        "scheduler_conf": _scheduler_conf(dense),
    }


def with_settings(conf: Mapping, settings: Mapping) -> dict:
    """A configuration in which some options are others; in mappings, one by one."""
    new = dict(conf)
    for name, value in settings.items():
        nested = isinstance(value, Mapping) and isinstance(new.get(name), Mapping)
        new[name] = with_settings(new[name], value) if nested else value
    return new


def _networks(dense: dict, choice: Choice, more: Mapping[str, dict]) -> dict:
    """The networks in scope, as ours and with more options."""
    found: dict[str, Any] = {}
    known: dict[str, Mapping[str, type]] = {"encoder": ENCODERS, "decoder": DECODERS}
    for part in ("encoder", "decoder") if choice.scope == "model" else ("encoder",):
        stock = str(dense.get(part))
        name = stock if stock in known[part] else f"l0_{stock}"
        if name not in known[part]:
            able = ", ".join(name.removeprefix("l0_") for name in known[part])
            raise ValueError(
                f"the experiment has {part}: {stock}; only {able} can be pruned. "
                "Choose another --scope or another experiment."
            )
        found[part] = name
        found[f"{part}_conf"] = {**_conf(dense, part), **more[part]}
    return found


def _conf(dense: dict, name: str) -> dict:
    return dict(dense.get(f"{name}_conf") or {})


def number_of(conf: dict, name: str) -> int | float | None:
    """A number of a configuration, where it has one; None otherwise.

    Raises:
        ValueError: something else
    """
    value = conf.get(name)
    if value is None or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    raise ValueError(
        f"the configuration has {name}: {reprlib.repr(value)}; expected a number"
    )


def _epochs(dense: dict) -> int:
    return int(number_of(dense, "max_epoch") or 40)  # ESPnet's default


def is_like_adam(dense: dict) -> bool:
    """Whether a learning rate of the dense training is one for AdamW too."""
    return "adam" in str(dense.get("optim"))


def _scheduler_conf(dense: dict) -> dict:
    """With a tenth of the updates in which the learning rate warms up."""
    conf = _conf(dense, "scheduler")
    warmup = number_of(conf, "warmup_steps")
    if warmup is not None:
        conf["warmup_steps"] = max(warmup // 10, 1)
    return conf


def _optim_conf(dense: dict) -> dict:
    """With the same peak of the learning rate, which noamlr makes of the warm-up too."""
    conf, before = _conf(dense, "optim"), _conf(dense, "scheduler")
    lr, warmup = number_of(conf, "lr"), number_of(before, "warmup_steps")
    if dense.get("scheduler") == "noamlr" and lr and warmup:
        shorter = _scheduler_conf(dense)["warmup_steps"] / warmup
        conf["lr"] = lr * math.sqrt(shorter)
    return conf

"""An experiment of ESPnet3 is adopted as one of ESPnet2; the answer is in its own YAML.

ESPnet3 writes the options of the model into the experiment's config.yaml as ESPnet2 does,
and those of its trainer beside them.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet2.tasks.abs_task import scheduler_classes
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.deploy.rates import ADAM, FALLING, conf_of
from espnet_l0prune.plugin.building import ESPNET3
from espnet_l0prune.plugin.prepare import CALLBACK

TASK = f"{ESPNET3}.ASRTask"
ALONE = "ctc_conf", "joint_net_conf", "token_list", "input_size", "freeze_param"
KNOWN_CALLBACKS = "lightning.pytorch.callbacks.", "espnet3.components.callbacks."
# L0Callback refuses them in a pruning: losses rise with the sparsity, and no average fits
# the gates
UNFIT = (
    *("EarlyStopping", "EMACallback", "EMAWeightAveraging"),
    *("StochasticWeightAveraging", "WeightAveraging"),
)
CRITERION = ["valid/loss_on_budget", 1, "min"]


def is_espnet3(config: Mapping) -> bool:
    """Return whether a configuration was written by ESPnet3.

    Raises:
        ValueError: it was, by a task that does not know our names
    """
    task = config.get("task")
    if task is None or not str(task).startswith("espnet3."):
        return False
    if task != TASK:
        raise ValueError(
            f"the experiment is of ESPnet3's {task}, which has encoders of its own; "
            f"expected {TASK}"
        )
    return True


def as_espnet2(config: Mapping) -> dict[str, Any]:
    """Return what ESPnet3 trained, by the options of an ESPnet2 training.

    Args:
        config: the experiment's config.yaml

    Raises:
        ValueError: options of another kind than ESPnet3 takes
    """
    trainer, tag = _mapping(config, "trainer"), config.get("exp_tag")
    if not isinstance(tag, str) or not re.fullmatch(r"[\w.-]+", tag):
        raise ValueError(
            f"the experiment of ESPnet3 has exp_tag: {str(tag)[:99]}; expected the name "
            "of the YAML that it was trained with"
        )
    _callbacks(config)
    optim, optim_conf = _class_of(config, "optimizer")
    scheduler, scheduler_conf = _class_of(config, "scheduler")
    return {
        **{name: config[name] for name in _of_the_model() if name in config},
        **{"optim": optim, "optim_conf": optim_conf},
        **{"scheduler": scheduler, "scheduler_conf": scheduler_conf},
        "max_epoch": trainer.get("max_epochs"),
        "accum_grad": trainer.get("accumulate_grad_batches"),
    }


def as_espnet3(config: Mapping, dense: Mapping, conf: Mapping, out: Path) -> dict:
    """Return a training.yaml that changes the dense one into another training.

    It begins with the dense one, which has to be in the same folder: ESPnet3 merges
    mappings, and replaces the rest.

    Args:
        config: the dense experiment's config.yaml
        dense: the options of the dense training, by their names in ESPnet2
        conf: those of the new training, likewise
        out: the folder that it will write

    Raises:
        ValueError: a change that cannot be merged
    """
    names = [*_of_the_model(), "init_param"]
    new = {name: conf[name] for name in names if conf.get(name) is not None}
    optimizer = dict(conf["optim_conf"])
    if conf["optim"] == "l0_adamw":
        more = conf_of(dict(dense), "optim").keys() - set(ADAM)
        if more:
            raise ValueError(
                f"optimizer has {', '.join(sorted(more))}, which ESPnet3 would hand on "
                "to L0AdamW; expected a dense training without. Write the YAML of the "
                "pruning by hand: docs/espnet3.md has the lines."
            )
        optimizer["_target_"] = f"{L0AdamW.__module__}.{L0AdamW.__name__}"
    scheduler = dict(conf["scheduler_conf"])
    if conf["scheduler"] == FALLING:
        scheduler["_target_"] = f"{CALLBACK}.{FALLING}"
    elif conf["scheduler"] != dense["scheduler"]:
        raise ValueError(
            f"scheduler is {conf['scheduler']}; expected {dense['scheduler']}, as in the "
            f"dense training, or {FALLING}"
        )
    interval: dict[str, Any] = {}
    if conf["scheduler"] == FALLING:
        interval = {"scheduler_interval": "step", "scheduler_monitor": None}
    pruned = conf.get("sparsity_scheduler") is not None
    callbacks = [each for each in _callbacks(config) if _is_known(each)]
    if pruned:
        callbacks = [each for each in callbacks if _class_name(each) not in UNFIT]
    written = {
        "defaults": [config["exp_tag"], "_self_"],
        "exp_dir": str(out),
        "model": _changes(new, dense),
        "optimizer": optimizer,
        "scheduler": scheduler,
        **interval,
        "fit": {"ckpt_path": None},
        "trainer": {
            "max_epochs": conf["max_epoch"],
            "callbacks": [*callbacks, {"_target_": f"{CALLBACK}.L0Callback"}],
        },
    }
    return {**written, "best_model_criterion": [CRITERION]} if pruned else written


def commands(config: Mapping, out: Path, prune: Path, finetune: Path) -> list[str]:
    """Return the commands that prune, cut and fine-tune, to be called in the recipe.

    Args:
        config: the dense experiment's config.yaml, whose YAML is looked for below conf
        out: the folder that `adopt` has made
        prune, finetune: the configurations in it
    """
    found = sorted(Path("conf").rglob(f"{config['exp_tag']}.yaml"))
    conf = found[0].parent if found else Path("conf")

    def copied(file: Path) -> Path:
        return conf / f"{out.name}_{file.name}"

    train = ["python", "run.py", "--stages", "train", "--training_config"]
    words: tuple[list[object], ...] = (
        ["cp", "-n", prune, copied(prune)],
        ["cp", "-n", finetune, copied(finetune)],
        [*train, copied(prune)],
        ["espnet-l0prune", "cut", out / "pruned", "--out", out / "cut"],
        [*train, copied(finetune)],
    )
    return [shlex.join(map(str, command)) for command in words]


def _of_the_model() -> list[str]:
    """Return the options that ESPnet3 has below `model`."""
    choices = [each.name for each in ASRTask.class_choices_list]
    named = [f"{name}{end}" for name in choices for end in ("", "_conf")]
    others = "preprocessor", "preprocessor_conf"  # which ESPnet3 has in `dataset`
    return [*(name for name in named if name not in others), *ALONE]


def _mapping(config: Mapping, name: str) -> dict[str, Any]:
    value = config.get(name)
    if not isinstance(value, dict):
        raise ValueError(
            f"the experiment of ESPnet3 has {name}: {str(value)[:99]}; expected a "
            "mapping, as of a training with a single optimizer"
        )
    return value


def _callbacks(config: Mapping) -> list[dict[str, Any]]:
    found = _mapping(config, "trainer").get("callbacks") or []
    if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
        raise ValueError(
            f"the experiment of ESPnet3 has trainer: callbacks: {str(found)[:99]}; "
            "expected a list of mappings"
        )
    return found


def _is_known(callback: Mapping) -> bool:
    """Return whether a callback is Lightning's or ESPnet3's, with plain options.

    Those of a user's own are not copied: ESPnet3 calls whatever a `_target_` names, and a
    stranger may have made the experiment.
    """
    known = str(callback.get("_target_")).startswith(KNOWN_CALLBACKS)
    return known and not any(isinstance(v, (dict, list)) for v in callback.values())


def _class_name(given: Mapping) -> str:
    """Return the name of the class that a mapping targets, without its module."""
    return str(given.get("_target_")).rpartition(".")[2]


def _class_of(config: Mapping, name: str) -> tuple[str, dict[str, Any]]:
    """Return the name, in ESPnet2, of the class that a mapping targets, and options."""
    given = _mapping(config, name)
    conf = {k: v for k, v in given.items() if not str(k).startswith("_")}
    short = _class_name(given).lower()
    if short == L0AdamW.__name__.lower():
        raise ValueError(
            "the experiment of ESPnet3 is a pruning, or was cut from one; expected a "
            "dense one, or one that was fine-tuned"
        )
    if name == "scheduler" and short not in scheduler_classes:
        raise ValueError(
            f"scheduler: _target_ is {given.get('_target_')}; expected one of those that "
            f"ESPnet2 has: {', '.join(scheduler_classes)}"
        )
    return short, conf


def _changes(new: Mapping, old: Mapping) -> dict[str, Any]:
    """Return what differs in a new mapping; mappings in it by key."""
    found = {}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            value, before = _changes(value, before), {}
        if value != before:
            found[name] = value
    return found

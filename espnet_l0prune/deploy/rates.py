"""The learning rates of pruning and fine-tuning follow from the dense training's."""

import math
import reprlib
from typing import Any

ADAM = ("lr", "betas", "eps", "weight_decay")
FALLING = "l0_lineardecaylr"


def pruning_rate(dense: dict) -> dict[str, Any]:
    """Return options with which the pruning has the dense training's peak rate.

    The dense scheduler stays, with a tenth of its warm-up.
    """
    conf, like = _optim_conf(dense), is_like_adam(dense)
    conf = {k: v for k, v in conf.items() if like and k in ADAM}
    if dense.get("optim") != "adamw":  # adamw has the default of L0AdamW
        conf = {"weight_decay": 0.0, **conf}
    scheduler = {"scheduler_conf": _scheduler_conf(dense)}
    return {"optim": "l0_adamw", "optim_conf": conf, **scheduler}


def fine_tuning_rate(dense: dict, scheduler: str | None = None) -> dict[str, Any]:
    """Return options with which the fine-tuning's rate falls to 0 at its end.

    It begins at a third of the dense training's peak: the network was just pruned, and
    the peak itself would drive it away from where it is (studies/README.md). After a
    training whose rate fell to 0 like this, it begins where that began. The dense
    scheduler stays, with a tenth of its warm-up, where the run's length is not known
    beforehand, or the peak.

    Args:
        dense: the options of the dense training
        scheduler: one that was asked for: the dense one, as it would stay, or another,
            which gets no options
    """
    stays = {"optim_conf": _optim_conf(dense), "scheduler_conf": _scheduler_conf(dense)}
    if scheduler not in (None, FALLING):
        same = scheduler == dense.get("scheduler")
        return stays if same else {**stays, "scheduler_conf": {}}
    known = dense.get("iterator_type", "sequence") in ("sequence", "category")
    peak = _peak(dense)
    if not peak or not known or dense.get("multiple_iterator"):
        return stays
    lr = peak if dense.get("scheduler") == FALLING else float(f"{peak / 3:.2g}")
    optim = {"optim_conf": {**conf_of(dense, "optim"), "lr": lr}}
    return {**optim, "scheduler": FALLING, "scheduler_conf": {"warmup_ratio": 0.1}}


def number_of(conf: dict, name: str) -> int | float | None:
    """Return a number of a configuration, or None where the option is not set.

    Raises:
        ValueError: a value that is not a finite number
    """
    value = conf.get(name)
    if value is None or (isinstance(value, (int, float)) and math.isfinite(value)):
        return value
    raise ValueError(
        f"the configuration has {name}: {reprlib.repr(value)}; expected a number"
    )


def is_like_adam(dense: dict) -> bool:
    """Return whether a learning rate of the dense training also suits AdamW."""
    return "adam" in str(dense.get("optim"))


def conf_of(dense: dict, name: str) -> dict:
    """Return a copy of the options of `name`; empty where it has none."""
    return dict(dense.get(f"{name}_conf") or {})


def _peak(dense: dict) -> float | None:
    """Return the highest learning rate of the dense training; None if it is not said."""
    conf, lr = conf_of(dense, "scheduler"), number_of(conf_of(dense, "optim"), "lr")
    if dense.get("scheduler") == "noamlr" and lr:  # with ESPnet's defaults
        size = number_of(conf, "model_size") or 320
        return lr / math.sqrt(size * (number_of(conf, "warmup_steps") or 25000))
    return number_of(conf, "max_lr") or lr  # schedulers that have one ignore lr


def _scheduler_conf(dense: dict) -> dict:
    """Return the dense scheduler's options, with a tenth of its warm-up."""
    conf = conf_of(dense, "scheduler")
    warmup = number_of(conf, "warmup_steps")
    if warmup is not None:
        conf["warmup_steps"] = max(warmup // 10, 1)
    return conf


def _optim_conf(dense: dict) -> dict:
    """Return the dense optimizer's options, with the same peak of the learning rate.

    With noamlr this peak also depends on the length of the warm-up.
    """
    conf, before = conf_of(dense, "optim"), conf_of(dense, "scheduler")
    lr, warmup = number_of(conf, "lr"), number_of(before, "warmup_steps")
    if dense.get("scheduler") == "noamlr" and lr and warmup:
        shorter = _scheduler_conf(dense)["warmup_steps"] / warmup
        conf["lr"] = lr * math.sqrt(shorter)
    return conf

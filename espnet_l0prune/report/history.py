"""A training's history is what ESPnet's reporter noted, read from its checkpoint.

In ESPnet3 it is what our callback noted, in Lightning's last checkpoint.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_l0prune.core.files import is_whole
from espnet_l0prune.core.reading import read_tensors
from espnet_l0prune.plugin.experiment import last_of
from espnet_l0prune.plugin.prepare import STATE
from espnet_l0prune.plugin.reporter import reported_seconds, reported_types
from espnet_l0prune.plugin.trainer import PREVIOUS
from espnet_l0prune.report.values import amount, count, number


@dataclass(frozen=True)
class Epoch:
    """An `Epoch` holds means over an epoch of training and over its validation, by name.

    Attributes:
        number: the epoch's number, from 1 on
        update: number of updates made when the epoch ends
        seconds: time of training and validation
    """

    number: int
    update: int
    seconds: float
    train: dict[str, float]
    valid: dict[str, float]


def read_history(experiment: Path, accum_grad: int = 1) -> tuple[list[Epoch], list[str]]:
    """Return the epochs so far, the first one first, and what is missing from them.

    There are no epochs until the first has ended.

    Args:
        experiment: the folder of a training, which may still run
        accum_grad: number of batches in an update

    Raises:
        ValueError: a checkpoint that does not hold a training
    """
    last = experiment / last_of(experiment)
    lightning = last.suffix == ".ckpt"
    names = [last.name] if lightning else ["checkpoint.pth", PREVIOUS]
    # a file being written is not whole, so L0Trainer keeps the one before it
    files = (experiment / name for name in names)
    whole = next((file for file in files if is_whole(file)), None)
    if whole is None:
        return [], []
    try:
        state = read_tensors(whole, reported_types())
        if lightning:
            epochs, missing = _read_lightning(state)
        else:
            epochs, missing = _read_epochs(dict(state["reporter"]["stats"]), accum_grad)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{whole} cannot be read: {type(e).__name__}: {e}. Expected the checkpoint "
            "of an ESPnet training"
        ) from e
    return epochs, [f"{whole.name} has {what}" for what in missing]


def _read_lightning(state: dict) -> tuple[list[Epoch], list[str]]:
    """Return what `read_history` does, of a checkpoint that ESPnet3's trainer wrote.

    There are no epochs of a training without our callback.
    """
    epochs: list[Epoch] = []
    missing: list[str] = []
    lost: dict[str, list[int]] = {}
    for noted in state["callbacks"].get(STATE, {}).get("epochs", []):
        n, update = count(noted["number"]) or 0, count(noted["update"]) or 0
        seconds = amount(noted["seconds"])
        before, least = (epochs[-1].number, epochs[-1].update) if epochs else (0, 1)
        if n <= before or update < least or seconds is None:
            missing.append(f"damaged figures after epoch {before}")
            continue
        if n > before + 1:  # an earlier version of the callback kept none
            missing.append(f"no epoch between {before} and {n}")
        figures = _figures({part: noted[part] for part in ("train", "valid")})
        _drop_lost(figures, n, lost)
        epochs.append(Epoch(n, update, seconds, figures["train"], figures["valid"]))
    return epochs, [*missing, *_told(lost)]


def _drop_lost(figures: dict, n: int, lost: dict[str, list[int]]) -> None:
    """Take what is no number out of the figures of epoch n, and note it by its name."""
    for part, values in figures.items():
        for name in [name for name, value in values.items() if value is None]:
            lost.setdefault(f"{part}.{name}", []).append(n)
            del values[name]


def _told(lost: dict[str, list[int]]) -> list[str]:
    """Return what `_drop_lost` has noted, in words."""
    return [
        f"no number for {name} in epoch {', '.join(map(str, where))}"
        for name, where in lost.items()
    ]


def _read_epochs(stats: dict, accum_grad: int) -> tuple[list[Epoch], list[str]]:
    """Return what `read_history` does, without epochs whose batches are not counted."""
    numbers = sorted(key for key in stats if count(key))
    missing = [] if len(numbers) == len(stats) else ["epochs without a number"]
    for before, after in itertools.pairwise([0, *numbers]):
        if after - before > 1:
            missing.append(f"no epoch between {before} and {after}")
    epochs: list[Epoch] = []
    lost: dict[str, list[int]] = {}
    batches = updates = 0
    for n in numbers:
        figures = _figures(stats[n])
        total = figures["train"].get("total_count")
        if total is None or total < batches:
            figures["train"]["total_count"] = None
        _drop_lost(figures, n, lost)
        if not figures["valid"]:
            lost.setdefault("valid", []).append(n)
        if "total_count" in figures["train"]:
            # batches that do not fill accum_grad make no update
            updates += int(figures["train"]["total_count"] - batches) // accum_grad
            batches = figures["train"]["total_count"]
            seconds = sum(values.pop("time", 0.0) for values in figures.values())
            epochs.append(Epoch(n, updates, seconds, figures["train"], figures["valid"]))
    return epochs, [*missing, *_told(lost)]


def _figures(parts: object) -> dict[str, dict[str, Any]]:
    """Return an epoch's figures by part and name, with times in seconds.

    What is not a number becomes None.
    """
    figures: dict[str, dict[str, Any]] = {"train": {}, "valid": {}}
    for part, values in parts.items() if isinstance(parts, dict) else ():
        for name, value in values.items() if isinstance(values, dict) else ():
            timed = name == "time"
            shown = amount(reported_seconds(value)) if timed else number(value)
            figures.setdefault(str(part), {})[str(name)] = shown
    return figures

"""Read what ESPnet's training wrote: with checks, and without running any code."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from espnet_l0prune.core.reading import read_tensors, read_yaml
from espnet_l0prune.plugin.building import build_model, refuse_adapters

WHOLE = 32  # times that a network may be larger than what was left of it by a cut
SMALL_NETWORK = (1_000, 2**26)  # tensors and values that any may have
LARGEST_OPTION = 2**14  # of a network; positions and widths have some thousands
RATES = ("fs", "sample_rate", "fmin", "fmax")  # in Hz: nothing is built by their size
PARTS = ("frontend", "preencoder", "encoder", "decoder", "ctc", "joint_net")


def read_mapping(path: str | Path, what: str, expected: str) -> dict[str, Any]:
    """Read a YAML mapping; the error says what the file is and what was expected.

    Raises:
        ValueError: no such file, no plain YAML, or no mapping of names
    """
    try:
        data = read_yaml(path)
        if not isinstance(data, dict):
            raise TypeError(f"it holds a {type(data).__name__}")
        if not all(isinstance(key, str) for key in data):
            raise TypeError("it has a key that is no name")
    except (ValueError, TypeError) as e:
        raise ValueError(
            f"{what} {path} cannot be read ({e}); expected {expected}"
        ) from e
    return data


def read_config(config_file: str | Path) -> argparse.Namespace:
    """Read an experiment's config.yaml, as plain data: no code runs.

    Raises:
        ValueError: no such file, or not an experiment's configuration
    """
    expected = "the config.yaml that training wrote into the experiment's folder"
    config = read_mapping(config_file, "configuration", expected)
    if "token_list" not in config:
        raise ValueError(
            f"configuration {config_file} is none of an ESPnet ASR experiment: it has no "
            f"token_list; expected {expected}"
        )
    for name, value in config.items():
        if name.endswith("_conf") and not isinstance(value, dict | None):
            raise ValueError(
                f"configuration {config_file} has no mapping in {name}; expected "
                f"{expected}"
            )
    return argparse.Namespace(**config)


def read_weights(model_file: str | Path) -> dict[str, torch.Tensor]:
    """Read a checkpoint of plain tensors, by name; of one of DeepSpeed's, which holds
    more, those of its module, as ESPnet does.

    Raises:
        ValueError: a file that is missing, damaged or no plain tensors
    """
    try:
        state = read_tensors(model_file)
        state = state["module"] if isinstance(state.get("module"), dict) else state
        for name, tensor in state.items():
            if not (isinstance(name, str) and isinstance(tensor, torch.Tensor)):
                raise TypeError(f"it holds a {type(tensor).__name__} for weights")
    except (ValueError, TypeError) as e:
        raise ValueError(
            f"{model_file} cannot be loaded: {e}. Expected a complete checkpoint of "
            "plain tensors, as ESPnet's training saves it; if it is damaged or "
            "truncated, take an earlier epoch or train on with --resume"
        ) from e
    return state


def load_weights(model: nn.Module, model_file: str | Path) -> None:
    """Load a checkpoint into a model.

    Raises:
        ValueError: see `read_weights` and `load_finite`
    """
    load_finite(model, read_weights(model_file), model_file)


def load_finite(
    model: nn.Module, state: dict[str, torch.Tensor], model_file: str | Path
) -> None:
    """Load tensors of a file, every key of it and no other, and of numbers alone: neither
    NaN nor infinity, be it in weights or in a norm's statistics.

    Raises:
        ValueError: keys or shapes that do not fit; a value that is no number
    """
    load_state(model, state, model_file)
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.numel():
            ends = torch.stack(tensor.aminmax())  # NaN if any is; nothing is copied
            if not ends.isfinite().all():
                raise ValueError(
                    f"{model_file} has {name} with values that are NaN or infinite; "
                    "expected finite weights. Its training diverged: take a checkpoint "
                    "of an epoch before, or train again with a lower learning rate."
                )


def load_state(model: nn.Module, state: dict, model_file: str | Path) -> None:
    """Load tensors of a file, every key of it and no other.

    Raises:
        ValueError: keys or shapes that do not fit
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise ValueError(
            f"{model_file} does not fit its configuration: {shorten(str(e), 1000)}. "
            "Expected the config.yaml of the same experiment."
        ) from e


@contextlib.contextmanager
def no_larger_than(state: dict[str, torch.Tensor]) -> Iterator[None]:
    """A while in which no network can be built that is far larger than its checkpoint.

    A million blocks are asked for in a few letters; here the building ends with the first
    few that are too many. A network that was cut is built whole at first.

    Raises:
        ValueError: more than 32 times the checkpoint's tensors or values
    """
    tensors, values = len(state), sum(tensor.numel() for tensor in state.values())
    most = [WHOLE * tensors + SMALL_NETWORK[0], WHOLE * values + SMALL_NETWORK[1]]

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        most[0] -= 1
        most[1] -= 0 if parameter is None else parameter.numel()
        if min(most) < 0:
            raise ValueError(
                f"the configuration describes a network of more than {WHOLE} times the "
                f"{values:,} values of its checkpoint; expected that of the same "
                "experiment"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_sizes(args: argparse.Namespace) -> None:
    """Raise ValueError for options of a network that are larger than any network's."""
    found = [("input_size", getattr(args, "input_size", None))]
    for part in PARTS:
        found += values_in(getattr(args, f"{part}_conf", None) or {})
    for name, value in found:
        large = isinstance(value, (int, float)) and abs(value) > LARGEST_OPTION
        if large and name not in RATES:
            raise ValueError(
                f"the configuration has {name}: {value}; expected at most "
                f"{LARGEST_OPTION}, since no network has more"
            )


def values_in(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What an option holds, however deep, with the name that it is under."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from values_in(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from values_in(part, name)
    else:
        yield name, value


def load_trained(args: argparse.Namespace, model_file: str | Path) -> Any:
    """Build the model that options describe, and load its weights strictly.

    Raises:
        ValueError: see `check_sizes`, `no_larger_than`, `build_model`, `load_weights`
    """
    check_sizes(args)
    state = read_weights(model_file)
    with no_larger_than(state):
        model = build_model(args)
    load_finite(model, state, model_file)
    return model


def load_model(
    config_file: str | Path, model_file: str | Path
) -> tuple[nn.Module, argparse.Namespace]:
    """Build an experiment's model, load its weights strictly; return its options too.

    Raises:
        ValueError: see `read_config`, `refuse_adapters` and `load_trained`
    """
    args = read_config(config_file)
    refuse_adapters(args)
    return load_trained(args, model_file), args


def load_experiment(
    experiment: Path, checkpoint: str
) -> tuple[nn.Module, argparse.Namespace]:
    """Load a checkpoint of an experiment's folder, in evaluation mode.

    Raises:
        ValueError: no such checkpoint; see `load_model`
    """
    model_file = experiment / checkpoint
    if experiment.is_dir() and not model_file.exists():
        there = sorted(p.name for p in experiment.glob("*.pth"))
        raise ValueError(
            f"{model_file}: no such checkpoint; expected one of "
            f"{', '.join(there) or 'the .pth files that training writes'}"
        )
    model, args = load_model(experiment / "config.yaml", model_file)
    return model.eval(), args


def averages_of(folder: Path) -> list[str]:
    """The names of the averaged checkpoints in an experiment's folder."""
    return sorted(p.name for p in folder.glob("*.ave.pth"))


def last_of(folder: Path) -> str:
    """The name of the last checkpoint in an experiment's folder, or of a cut's; or of an
    average, where nothing else was kept."""
    there = [name for name in ("latest.pth", "model.pth") if (folder / name).exists()]
    return (there or averages_of(folder) or ["model.pth"])[0]


def average_of(folder: Path) -> str:
    """The name of the averaged checkpoint in an experiment's folder; else of the last, or
    of a cut's.

    Raises:
        ValueError: several averages
    """
    averages = averages_of(folder)
    if len(averages) > 1:
        raise ValueError(
            f"{folder} has {', '.join(averages)}; expected one of them in --checkpoint"
        )
    return averages[0] if averages else last_of(folder)

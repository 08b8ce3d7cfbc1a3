"""Read what ESPnet's training wrote: with checks, and without running any code."""

import argparse
import contextlib
import importlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import espnet
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from espnet_l0prune.core.reading import read_tensors, read_yaml
from espnet_l0prune.plugin.moved import refuse_moved
from espnet_l0prune.plugin.transducer import loss_at_hand
from espnet_l0prune.plugin.weight_names import read_any_names_

TASKS = {"asr": "ASRTask", "s2t": "S2TTask", "slu": "SLUTask", "st": "STTask"}
WHOLE = 32  # times that a network may be larger than what was left of it by a cut
SMALL_NETWORK = (1_000, 2**26)  # tensors and values that any may have
LARGEST_OPTION = 2**14  # of a network; positions and widths have some thousands
# Variables by which a user lets torch, and ESPnet from 202609 on, unpickle anything.
UNSAFE_LOAD = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "ESPNET_ALLOW_UNSAFE_TORCH_LOAD"
RATES = ("fs", "sample_rate", "fmin", "fmax")  # in Hz: nothing is built by their size
PARTS = ("frontend", "preencoder", "encoder", "decoder", "ctc", "joint_net")
# Options that only one task of ESPnet's has, of those that are looked for in this order;
# ones without a list of tokens are not here.
MARKS = {
    "transcript_token_list": "slu",
    "subtask_series": "enh_s2t",
    "extra_asr_decoder": "st",
    "src_token_list": "mt",
    "joint_network_conf": "asr_transducer",
    "pred_masked_weight": "hubert",
    "fairseq_checkpoint": "uasr",
    "lm": "lm",
    "tts": "tts",
    "svs": "svs",
}


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


def task_name(args: argparse.Namespace) -> str:
    """ESPnet's short name of the task that a configuration is of, which it does not
    say: `asr`, where nothing tells that it is another."""
    preprocessor = getattr(args, "preprocessor", None)
    if preprocessor in ("s2t", "s2t_ctc"):
        return preprocessor
    return next((task for mark, task in MARKS.items() if hasattr(args, mark)), "asr")


def task_of(args: argparse.Namespace) -> type[Any]:
    """ESPnet's task that a configuration is of.

    Raises:
        ValueError: one that we do not know
    """
    name = task_name(args)
    if name not in TASKS:
        raise ValueError(
            f"the configuration is of ESPnet's {name} task; expected one of "
            f"{', '.join(TASKS)}"
        )
    # not above: the model classes that ESPnet's tasks register import this module
    return getattr(importlib.import_module(f"espnet2.tasks.{name}"), TASKS[name])


def refuse_adapters(args: argparse.Namespace) -> None:
    """Raise ValueError for weights that are spread over adapters, which ESPnet adds to
    the model that it has built."""
    for name in ("use_adapter", "use_lora"):  # the latter until 202402
        if getattr(args, name, False):
            raise ValueError(
                f"{name} is true: part of what each layer computes is in adapters, which "
                f"no cut reaches; expected {name}: false. Train without adapters, or "
                "merge them into the weights of the layers first."
            )


def note_input_size_(model: nn.Module, args: argparse.Namespace) -> None:
    """Tell a model of ESPnet's own, which does not keep it, the size of the features that
    it is fed with, None with a front end; and an encoder, its size of input."""
    model.input_size = size = args.input_size
    for part in (model.frontend, model.preencoder):
        if part is not None:
            size = part.output_size()
    model.encoder.input_size = size


@contextlib.contextmanager
def plain_tensors_only() -> Iterator[None]:
    """A while in which torch.load unpickles nothing but tensors, whoever calls it; unless
    the user has allowed more, by one of `UNSAFE_LOAD`."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    # as torch reads it
    if not any(os.environ.get(x) in ("1", "y", "yes", "true") for x in UNSAFE_LOAD):
        os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def build_model(args: argparse.Namespace) -> Any:
    """Build the model that options describe, as its task of ESPnet's does.

    Options can name further files, such as the weights of a front end: these are read as
    plain tensors, so that no code of theirs runs.

    Raises:
        ValueError: options that ESPnet cannot build a model of, or not here
        ImportError: a package is missing
    """
    try:
        with plain_tensors_only(), loss_at_hand():
            task = task_of(args)
            refuse_moved(task, args)
            model = task.build_model(args)
    except (ValueError, ImportError):  # they say what is wrong
        raise
    except OSError as e:
        raise ValueError(
            f"the configuration names a file that cannot be read from here ({e}); "
            "expected to be called in the folder that the model was trained from"
        ) from e
    except Exception as e:  # whatever ESPnet makes of options that nobody checks
        if isinstance(refused := e.__cause__ or e, pickle.UnpicklingError):
            raise ValueError(
                "the configuration names a file that holds more than plain tensors, "
                f"which could run code ({str(refused).splitlines()[0]}). If you know who "
                f"made it, set {' and '.join(f'{x}=1' for x in UNSAFE_LOAD)}."
            ) from e
        raise ValueError(
            "the configuration does not describe a model that ESPnet can build here "
            f"({type(e).__name__}: {e}); expected that of a recognizer, with options "
            f"that ESPnet {espnet.__version__} has"
        ) from e
    note_input_size_(model, args)
    read_any_names_(model)
    return model


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

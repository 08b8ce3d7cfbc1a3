"""Read what ESPnet's training wrote: with checks, and without running any code."""

import argparse
import contextlib
import importlib
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import espnet
import torch
import yaml
from torch import nn

from espnet_l0prune.plugin.transducer import loss_at_hand

TASKS = {"asr": "ASRTask", "s2t": "S2TTask", "slu": "SLUTask", "st": "STTask"}
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


def read_mapping(path: str | Path, what: str, expected: str) -> dict:
    """Read a YAML mapping; the error says what the file is and what was expected.

    Raises:
        ValueError: no such file, no YAML, or no mapping
    """
    try:
        data = yaml.safe_load(Path(path).read_text("utf-8"))
        if not isinstance(data, dict):
            raise TypeError(f"it holds a {type(data).__name__}")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as e:
        raise ValueError(
            f"{what} {path} cannot be read ({e}); expected {expected}"
        ) from e
    return data


def read_config(config_file: str | Path) -> argparse.Namespace:
    """Read an experiment's config.yaml; `yaml.safe_load`, so no code runs.

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
    return argparse.Namespace(**config)


def load_weights(model: nn.Module, model_file: str | Path) -> None:
    """Load a checkpoint of plain tensors, every key of it and no other.

    Raises:
        ValueError: a file that is missing, damaged or no plain tensors; keys or shapes
            that do not fit
    """
    try:
        mapped = zipfile.is_zipfile(model_file)  # no second copy of a big model
        state = torch.load(model_file, map_location="cpu", weights_only=True, mmap=mapped)
        if not isinstance(state, dict):
            raise TypeError(f"it holds a {type(state).__name__}")
    except Exception as e:  # torch.load raises almost anything for a damaged file
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(
            f"{model_file} cannot be loaded: {reason} Expected a "
            "complete checkpoint of plain tensors, as ESPnet's training saves it; "
            "if it is truncated, take an earlier epoch or train on with --resume"
        ) from e
    load_state(model, state, model_file)


def load_state(model: nn.Module, state: dict, model_file: str | Path) -> None:
    """Load tensors of a file, every key of it and no other.

    Raises:
        ValueError: keys or shapes that do not fit
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise ValueError(
            f"{model_file} does not fit its configuration: {e}. Expected the "
            "config.yaml of the same experiment."
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
    the user has told torch otherwise, by TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    allowed = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    if allowed not in ("1", "y", "yes", "true"):  # as torch reads it
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
            model = task_of(args).build_model(args)
    except (ValueError, ImportError):  # they say what is wrong
        raise
    except OSError as e:
        raise ValueError(
            f"the configuration names a file that cannot be read from here ({e}); "
            "expected to be called in the folder that the model was trained from"
        ) from e
    except pickle.UnpicklingError as e:
        raise ValueError(
            "the configuration names a file that holds more than plain tensors, which "
            f"could run code ({str(e).splitlines()[0]}). If you know who made it, set "
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1."
        ) from e
    except Exception as e:  # whatever ESPnet makes of options that nobody checks
        raise ValueError(
            "the configuration does not describe a model that ESPnet can build here "
            f"({type(e).__name__}: {e}); expected that of a recognizer, with options "
            f"that ESPnet {espnet.__version__} has"
        ) from e
    note_input_size_(model, args)
    return model


def load_model(
    config_file: str | Path, model_file: str | Path
) -> tuple[nn.Module, argparse.Namespace]:
    """Build an experiment's model, load its weights strictly; return its options too.

    Raises:
        ValueError: see `read_config`, `refuse_adapters`, `build_model` and
            `load_weights`
    """
    args = read_config(config_file)
    refuse_adapters(args)
    model = build_model(args)
    load_weights(model, model_file)
    return model, args


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

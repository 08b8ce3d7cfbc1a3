"""Build the model that a configuration describes, as ESPnet does, running no code of
its files."""

import argparse
import contextlib
import importlib
import os
import pickle
from collections.abc import Iterator
from typing import Any

import espnet
import humanfriendly
from torch import nn

from espnet_l0prune.core.ranges import check
from espnet_l0prune.plugin.transducer import loss_at_hand
from espnet_l0prune.plugin.weight_names import read_any_names_

TASKS = {"asr": "ASRTask", "s2t": "S2TTask", "slu": "SLUTask", "st": "STTask"}
SAMPLE_RATE = 16_000  # in Hz, of a front end that is not told its own
# Variables by which a user lets torch, and ESPnet from 202609 on, unpickle anything.
UNSAFE_LOAD = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "ESPNET_ALLOW_UNSAFE_TORCH_LOAD"
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


def sample_rate_of(args: argparse.Namespace) -> int:
    """The samples a second of the audio that a model is for."""
    fs = (getattr(args, "frontend_conf", None) or {}).get("fs", SAMPLE_RATE)
    rate = humanfriendly.parse_size(str(fs))
    check("frontend_conf", {"fs": rate})
    return rate


def note_input_(model: nn.Module, args: argparse.Namespace) -> None:
    """Tell a model of ESPnet's own, which does not keep them, the samples a second of its
    audio, and the size of the features that it is fed with, None with a front end; and an
    encoder, its size of input."""
    if model.frontend is not None:
        model.sample_rate = sample_rate_of(args)
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
            model = task_of(args).build_model(args)
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
    note_input_(model, args)
    read_any_names_(model)
    return model

"""A model is built from its configuration as by ESPnet, but no code of its files runs."""

import argparse
import contextlib
import importlib.util
import os
import pickle
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import espnet
import humanfriendly
from torch import nn

from espnet_l0prune.core.ranges import check
from espnet_l0prune.networks.streaming import refuse_short_
from espnet_l0prune.plugin.heads import name_absent_
from espnet_l0prune.plugin.inputs import SAMPLE_RATE, reads_audio
from espnet_l0prune.plugin.s3prl import reading_upstreams
from espnet_l0prune.plugin.transducer import loss_at_hand, provide_loss_
from espnet_l0prune.plugin.weight_names import read_any_names_

TASKS = {
    "asr": "ASRTask",
    "asr_transducer": "ASRTransducerTask",
    "mt": "MTTask",
    "s2t": "S2TTask",
    "s2t_ctc": "S2TTask",
    "slu": "SLUTask",
    "st": "STTask",
}
ESPNET3 = "espnet3.systems.esp2_asr.task"  # the module of its ASRTask
# Variables that let torch, and ESPnet from 202609 on, unpickle anything.
UNSAFE_LOAD = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "ESPNET_ALLOW_UNSAFE_TORCH_LOAD"
# Options by which one of ESPnet's tasks is told from those below it. Tasks without a list
# of tokens are not here.
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
    """Return the short name of the ESPnet task that a configuration is for.

    The configuration does not name it; it is `asr` unless an option belongs to another.
    """
    preprocessor = getattr(args, "preprocessor", None)
    if preprocessor in ("s2t", "s2t_ctc"):
        return preprocessor
    return next((task for mark, task in MARKS.items() if hasattr(args, mark)), "asr")


def task_of(args: argparse.Namespace) -> type[Any]:
    """Return the ESPnet task that a configuration is for.

    Raises:
        ValueError: a task that we do not support
    """
    name = task_name(args)
    if name not in TASKS:
        raise ValueError(
            f"the configuration is of ESPnet's {name} task; expected one of "
            f"{', '.join(TASKS)}"
        )
    # imported here, because the models that ESPnet's tasks register import this module
    return getattr(importlib.import_module(f"espnet2.tasks.{name}"), TASKS[name])


def refuse_adapters(args: argparse.Namespace) -> None:
    """Raise ValueError for weights in adapters, which ESPnet adds to a built model."""
    for name in ("use_adapter", "use_lora"):  # use_lora existed until 202402
        if getattr(args, name, False):
            raise ValueError(
                f"{name} is true: part of what each layer computes is in adapters, which "
                f"no cut reaches; expected {name}: false. Train without adapters, or "
                "merge them into the weights of the layers first."
            )


def sample_rate_of(args: argparse.Namespace) -> int:
    """Return the sample rate in Hz of the audio that a model is for."""
    fs = (getattr(args, "frontend_conf", None) or {}).get("fs", SAMPLE_RATE)
    rate = humanfriendly.parse_size(str(fs))
    check("frontend_conf", {"fs": rate})
    return rate


def note_input_(model: nn.Module, args: argparse.Namespace) -> None:
    """Store on a model of ESPnet's what it reads, which it does not keep itself.

    These are None for each part that other models have and it has not, the tokens of the
    source language, the audio's sample rate in Hz, the number of features that a model
    without a front end reads, and the number of features that the encoder reads.
    """
    name_absent_(model)
    model.src_token_list = getattr(args, "src_token_list", None)
    if reads_audio(model):
        model.sample_rate = sample_rate_of(args)
    model.input_size = size = args.input_size
    for part in (model.frontend, model.preencoder):
        if part is not None:
            size = part.output_size()
    model.encoder.input_size = size


@contextlib.contextmanager
def plain_tensors_only() -> Iterator[None]:
    """Let torch.load unpickle nothing but tensors within a `with` block.

    A user can allow more by a variable in `UNSAFE_LOAD`.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    # torch takes these values for true
    if not any(os.environ.get(x) in ("1", "y", "yes", "true") for x in UNSAFE_LOAD):
        os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def upstreams_checked(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Return a context in which self-supervised front ends are built, if there are any;
    `fused` has several."""
    some = getattr(args, "frontend", None) in ("s3prl", "fused")
    known = importlib.util.find_spec("s3prl") is not None
    return reading_upstreams() if some and known else contextlib.nullcontext()


def build_model(args: argparse.Namespace) -> Any:
    """Build the model that options describe, as its ESPnet task does.

    Options can name further files, such as the weights of a front end: these are read as
    plain tensors, so that none of their code runs.

    Raises:
        ValueError: options of which ESPnet cannot build a model, or not on this machine
        ImportError: a package is missing
    """
    try:
        with plain_tensors_only(), loss_at_hand(), upstreams_checked(args):
            model = task_of(args).build_model(args)
    except (ValueError, ImportError):  # their messages say what is wrong
        raise
    except OSError as e:
        raise ValueError(
            f"the configuration names a file that cannot be read from here ({e}); "
            "expected to be called in the folder that the model was trained from"
        ) from e
    except Exception as e:  # ESPnet does not check options, and may raise anything
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
    provide_loss_(model)
    read_any_names_(model)
    refuse_short_(model)
    return model

"""Front ends that ESPnet has trained can be built without the published model.

That model is a checkpoint beside its config.yaml, which is read as plain tensors here, so
that none of its code runs.
"""

import argparse
import copy
import logging
import reprlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from espnet2.tasks.ssl import SSLTask
from torch import nn

from espnet_l0prune.networks.espnet_modules import ESPnetSSLFrontend
from espnet_l0prune.networks.espnet_ssl import freeze_unused_in_ssl_
from espnet_l0prune.plugin.experiment import read_mapping, read_weights
from espnet_l0prune.plugin.upstream import WHERE, UpstreamNetwork

PARTS = ("frontend", "specaug", "normalize", "preencoder", "encoder", "model")
NAMES = (*PARTS, *(f"{part}_conf" for part in PARTS), "input_size", "loss", "util")
# Options of what only its pretraining needed, which are large
CLASSES = ("num_classes", "final_dim")
THEIRS = "that of a model that ESPnet's task ssl has trained"
OURS = "what `espnet-l0prune cut` wrote"


class ESPnetSSLNetwork(UpstreamNetwork):
    """An `ESPnetSSLNetwork` is our front end `l0_espnet_ssl`; see `UpstreamNetwork`.

    Raises:
        ValueError: gates while `freeze_encoder_steps` would hold the network still
    """

    def __init__(self, *, freeze_encoder_steps: int = 0, **conf: Any):
        super().__init__(freeze_encoder_steps=freeze_encoder_steps, **conf)
        if freeze_encoder_steps > 0 and self.gated_sites():
            raise ValueError(
                f"frontend_conf: freeze_encoder_steps is {freeze_encoder_steps}; "
                "expected 0, as gates in the front end have to move"
            )
        freeze_unused_in_ssl_(self)

    @staticmethod
    @contextmanager
    def loading(
        options: dict[str, Any],
        config: Mapping[str, Any] | None,
        found: dict[str, Any],
    ) -> Iterator[None]:
        if config is None and not isinstance(options.get("path_or_url"), str):
            raise ValueError(
                "frontend_conf: path_or_url in its frontend_conf is "
                f"{options.get('path_or_url')!r}; expected the file of a self-supervised "
                "model (.pth), with its config.yaml beside it, or the name of a "
                "published one, such as espnet/xeus"
            )

        def build_model_from_file(
            config_file: str | None, model_file: str, device: str
        ) -> tuple[nn.Module, argparse.Namespace]:
            args = _read(config_file, model_file) if config is None else dict(config)
            model = _build(args)
            if config is None:
                _load(model, model_file)
            found.update(_portable(args, model))
            return model, argparse.Namespace(**args)

        if config is not None:
            _check(config, f"{WHERE} {reprlib.repr(dict(config))}", OURS)
            options["path_or_url"] = "published.pth"  # which is not read
        namespace: Any = sys.modules[ESPnetSSLFrontend.__module__]
        namespace.SSLTask = SimpleNamespace(build_model_from_file=build_model_from_file)
        try:
            yield
        finally:
            namespace.SSLTask = SSLTask


def _read(config_file: str | None, model_file: str) -> dict[str, Any]:
    """Return the configuration of a self-supervised model, which may be beside its file.

    Raises:
        ValueError: a file that is missing, or that is not such a configuration
    """
    file = Path(config_file or Path(model_file).with_name("config.yaml"))
    config = read_mapping(file, "configuration", THEIRS)
    config = {"preencoder": None, **{f"{part}_conf": {} for part in PARTS}, **config}
    _check(config, f"configuration {file}", THEIRS)
    return config


def _check(config: Mapping[str, Any], what: str, expected: str) -> None:
    """Raise ValueError for options that are missing."""
    if missing := [name for name in NAMES if name not in config]:
        raise ValueError(f"{what} lacks {', '.join(missing)}; expected {expected}")


def _load(model: nn.Module, model_file: str) -> None:
    """Load the weights that a file has, as ESPnet does, which leaves others at random."""
    missing = model.load_state_dict(read_weights(model_file), strict=False).missing_keys
    if missing:
        logging.warning(
            f"{model_file} has no {', '.join(missing)}, which are left as they are drawn"
        )


def _build(config: Mapping[str, Any]) -> nn.Module:
    """Build a model of random weights."""
    chosen = copy.deepcopy({name: config[name] for name in NAMES})
    args = argparse.Namespace(**chosen, token_list=[], init=None)
    with tempfile.TemporaryDirectory() as folder:
        size = (args.normalize_conf or {}).pop("size", None)
        if size is not None:  # the statistics are among the weights
            file = Path(folder, "statistics.npz")
            zeros = np.zeros(size, dtype="float32")
            np.savez(file, count=1, sum=zeros, sum_square=zeros)
            args.normalize_conf["stats_file"] = str(file)
        return SSLTask.build_model(args)


def _portable(config: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Return what `_build` needs of a configuration, without names of files."""
    kept = copy.deepcopy({name: config[name] for name in NAMES})
    if kept["normalize"] == "global_mvn":
        kept["normalize_conf"].pop("stats_file", None)
        kept["normalize_conf"]["size"] = model.normalize.mean.numel()
    for loss in kept["loss"]:
        for name in CLASSES:
            if name in loss.get("conf", {}):
                loss["conf"][name] = 1
    return kept

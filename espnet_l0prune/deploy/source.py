"""What is to be pruned is the folder of a dense experiment, or a zip of the model zoo."""

import argparse
import copy
from pathlib import Path

from torch import nn

from espnet_l0prune.core.steps import Step, how_long, quiet
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.deploy.choice import DATA, Choice, without_run
from espnet_l0prune.deploy.espnet3 import is_espnet3
from espnet_l0prune.deploy.foreign import TELLS, check_foreign
from espnet_l0prune.plugin.counting import sites_of
from espnet_l0prune.plugin.experiment import average_of, load_trained, read_config


def read_source(
    source: Path,
    checkpoint: str | None,
    unpacked: Path,
    choice: Choice,
    step: Step = quiet,
) -> tuple[dict, Path, Path]:
    """Return the configuration of a dense experiment, its file, and the checkpoint's.

    Args:
        source: the experiment's folder, or the zip
        checkpoint: name of the checkpoint in the folder; None for its average
        unpacked: the folder to unpack a zip into
        choice: how to prune
        step: is called with the name of each step as it begins

    Raises:
        ValueError: an experiment of ESPnet3 in a zip; files that are missing, damaged or
            not safe
    """
    if not source.is_file():
        config_file = source / "config.yaml"
        model_file = source / (checkpoint or average_of(source))
        return vars(read_config(config_file)), config_file, model_file
    step(f"unpacking {source}")
    config_file, model_file = unpack_model(source, unpacked)
    dense = vars(read_config(config_file))
    dropped = TELLS if choice.data else (*TELLS, *DATA)
    dense = {k: v for k, v in dense.items() if k not in dropped}
    if is_espnet3(dense):
        raise ValueError(
            f"{source} holds an experiment of ESPnet3, whose training has to go on from "
            "its own YAML; expected the experiment's folder"
        )
    check_foreign(without_run(dense, choice), unpacked, config_file)
    return dense, config_file, model_file


def load_dense(
    config: dict, config_file: Path, model_file: Path, step: Step = quiet
) -> nn.Module:
    """Return the model that is to be pruned, with its weights.

    Args:
        config, config_file, model_file: what `read_source` has returned
        step: is called with how long it takes

    Raises:
        ValueError: a model that has gates; see `load_trained`
    """
    step(f"loading {model_file}: {how_long(model_file)}")
    trained = load_trained(argparse.Namespace(**copy.deepcopy(config)), model_file)
    if any(site.gates for site in sites_of(trained)):
        raise ValueError(
            f"{config_file} has gates; expected a dense model, or one that was cut: "
            "`espnet-l0prune cut` comes first"
        )
    return trained

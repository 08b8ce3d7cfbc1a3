"""Utterances are read from the data that an experiment was trained on."""

import argparse
import itertools
from pathlib import Path
from textwrap import shorten
from typing import Any

from espnet2.train.distributed_utils import DistributedOption
from torch import Tensor

from espnet_l0prune.plugin.building import task_of


def read_utterances(
    args: argparse.Namespace, count: int, folder: Path | None = None
) -> list[dict[str, Tensor]]:
    """Return utterances of an experiment's training data as batches of one, in float32.

    They are drawn at random, by the experiment's seed, and without replacement. Nothing
    is added to them that training adds while it reads.

    Args:
        args: the experiment's configuration, whose relative paths start here
        count: how many there are at most
        folder: has other data, in files of the same names; None for those of the training

    Raises:
        ValueError: data that are not here, or that ESPnet cannot read; files in a folder
            that their names cannot tell apart
        ImportError: a package is missing
    """
    data = getattr(args, "train_data_path_and_name_and_type", None) or []
    shapes = getattr(args, "train_shape_file", None) or []
    whose = "the experiment's training data"
    expected = "them where training had them, and to be called in the folder that it was "
    expected += "started from"
    if folder is not None and data:
        _check_names([path for path, *_ in data])
        data = [(str(folder / Path(path).name), *more) for path, *more in data]
        shapes = [data[0][0]]  # it has the utterances' names too
        whose = f"data like {whose}"
        expected = f"files in {folder} with the names of the training's"
    files = dict.fromkeys([*(path for path, *_ in data), *shapes])
    missing = [str(file) for file in files if not Path(file).exists()]
    if missing or not (data and shapes):
        raise ValueError(
            f"{whose} are not here: {', '.join(missing) or 'no file'} of its "
            f"configuration; expected {expected}"
        )
    of_training: dict[str, Any] = {
        "data_path_and_name_and_type": data,
        "shape_files": shapes,
        "num_batches": None,
        "train": True,  # in random order
    }
    changes = {"iterator_type": "sequence", "train_dtype": "float32"}
    args = argparse.Namespace(**{**vars(args), **changes})
    try:
        # of ESPnet's modes, the one that reads utterances one by one, as they are
        make = task_of(args).build_iter_factory
        batches = make(args, DistributedOption(), "plot_att", of_training).build_iter(1)
        return [batch for _, batch in itertools.islice(batches, count)]
    except ImportError:
        raise
    except Exception as e:  # ESPnet does not check data, and may raise anything
        raise ValueError(
            f"{whose} ({', '.join(map(str, files))}) cannot be read "
            f"({type(e).__name__}: {shorten(str(e), 300)}); expected them as training "
            "had them"
        ) from e


def _check_names(paths: list[str]) -> None:
    """Raise ValueError for files in different folders that have the same name."""
    for path, other in itertools.combinations(dict.fromkeys(paths), 2):
        if Path(path).name == Path(other).name:
            raise ValueError(
                f"the training's data {path} and {other} have the same name, so that a "
                "folder cannot hold others in their place; expected no other data"
            )

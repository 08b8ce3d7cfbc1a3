"""The number of updates in an epoch is found before anything is trained."""

from collections.abc import Mapping
from pathlib import Path

from espnet2.samplers.build_batch_sampler import build_batch_sampler


def updates_of_an_epoch(config: Mapping) -> int | None:
    """Count the batches that ESPnet would make of the training data.

    Args:
        config: an experiment's configuration, whose shape files are read

    Returns:
        number of updates in an epoch; None where the files are not here, or where the
        iterator's length is not known beforehand
    """
    files = config.get("train_shape_file") or []
    sequence = config.get("iterator_type", "sequence") == "sequence"
    if not sequence or config.get("multiple_iterator"):
        return None
    try:
        if not files or not all(Path(file).is_file() for file in files):
            return None
        batches = build_batch_sampler(
            type=config["batch_type"],
            shape_files=files,
            fold_lengths=config["fold_length"],
            batch_size=config["batch_size"],
            batch_bins=config["batch_bins"],
            sort_in_batch=config["sort_in_batch"],
            sort_batch=config["sort_batch"],
            drop_last=config["drop_last_iter"],
            min_batch_size=config["min_batch_size"],
        )
        made = config["num_iters_per_epoch"] or len(batches)
        return made // config["accum_grad"]
    except Exception:  # ESPnet checks neither files nor options, and may raise anything
        return None

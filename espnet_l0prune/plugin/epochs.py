"""How long an epoch is, before anything is trained."""

from collections.abc import Mapping
from pathlib import Path

from espnet2.samplers.build_batch_sampler import build_batch_sampler


def updates_of_an_epoch(config: Mapping) -> int | None:
    """Count the batches that ESPnet would make of the training data.

    Args:
        config: of an experiment; its shape files are read

    Returns:
        updates in an epoch; None where the files are not here, or the iterator is one
        whose length nobody knows before
    """
    files = [Path(file) for file in config.get("train_shape_file") or []]
    known = config.get("iterator_type", "sequence") == "sequence"
    if not files or not known or config.get("multiple_iterator"):
        return None
    if not all(file.is_file() for file in files):
        return None
    batches = config.get("num_iters_per_epoch")
    try:
        batches = batches or len(
            build_batch_sampler(
                type=config["batch_type"],
                shape_files=[str(file) for file in files],
                fold_lengths=config["fold_length"],
                batch_size=config["batch_size"],
                batch_bins=config["batch_bins"],
                sort_in_batch=config["sort_in_batch"],
                sort_batch=config["sort_batch"],
                drop_last=config["drop_last_iter"],
                min_batch_size=config["min_batch_size"],
            )
        )
        return batches // config["accum_grad"]
    except Exception:  # whatever ESPnet makes of files and options that nobody checks
        return None

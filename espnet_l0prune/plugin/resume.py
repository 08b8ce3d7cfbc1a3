"""A resumed run must have most options in common with the run that it continues.

It should be the run that never stopped. ESPnet compares no options, and overwrites
config.yaml before it trains. So the earlier one is read in time, and kept until the first
epoch begins, since a run can still be refused until then.
"""

import argparse
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from espnet_l0prune.core.files import replace
from espnet_l0prune.plugin.experiment import read_config

EARLIER = "config.previous.yaml"
# Options of one call of ESPnet's command, which do not describe what is trained.
RUN = (
    "config",
    "collect_stats",
    "deepspeed_config",
    "dist_backend",
    "dist_init_method",
    "dist_launcher",
    "dist_master_addr",
    "dist_master_port",
    "dist_rank",
    "dist_world_size",
    "distributed",
    "dry_run",
    "ignore_init_mismatch",
    "init",
    "init_param",
    "local_rank",
    "log_level",
    "multiprocessing_distributed",
    "ngpu",
    "output_dir",
    "patience",
    "pretrain_path",
    "print_config",
    "required",
    "resume",
    "use_deepspeed",
    "version",
    "wandb_id",
    "write_collected_feats",
)
# Options that a resumed run may change: how long it is, what it runs on, what it writes,
# how it is validated, and where files are.
MAY_CHANGE = {
    *RUN,
    "max_epoch",
    *("num_workers", "max_cache_size", "max_cache_fd", "valid_max_cache_size"),
    *("cudnn_enabled", "cudnn_benchmark", "cudnn_deterministic", "detect_anomaly"),
    *("sharded_ddp", "unused_parameters", "gradient_as_bucket_view"),
    *("log_interval", "num_att_plot", "use_matplotlib", "use_tensorboard"),
    *("create_graph_in_tensorboard", "use_wandb", "wandb_project", "wandb_entity"),
    *("wandb_name", "wandb_model_log_interval"),
    *("keep_nbest_models", "nbest_averaging_interval", "best_model_criterion"),
    *("early_stopping_criterion", "valid_batch_size", "valid_batch_bins"),
    *("valid_batch_type", "valid_iterator_type"),
    *("train_data_path_and_name_and_type", "valid_data_path_and_name_and_type"),
    *("train_shape_file", "valid_shape_file", "bpemodel", "non_linguistic_symbols"),
    *("rir_scp", "noise_scp", "normalize_conf: stats_file"),
    *("model_conf: teacher_config", "model_conf: teacher_model_file"),
}


def check_options(folder: Path, args: argparse.Namespace) -> None:
    """Compare options with those of the run in a folder, and say what has changed.

    Args:
        folder: the run's folder, before ESPnet overwrites its config.yaml
        args: all options of the call that resumes it

    Raises:
        ValueError: changed options that would make the rest of the run another one
    """
    earlier = folder / EARLIER if (folder / EARLIER).exists() else folder / "config.yaml"
    try:
        old = vars(read_config(earlier))
    except ValueError as e:
        logging.warning(f"Resuming without a comparison of options: {e}")
        return
    changed = dict(_differences(_plain(old), _plain(vars(args))))
    refused = [text for name, text in changed.items() if name not in MAY_CHANGE]
    if refused:
        raise ValueError(
            f"{folder} was begun with other options: {'; '.join(refused)}. The rest of "
            "the run would be another one. Resume with the old options, or train into "
            "another --output_dir."
        )
    if changed:
        logging.warning(f"Resuming with other options: {'; '.join(changed.values())}")


def keep_config(folder: Path) -> None:
    """Copy config.yaml before ESPnet overwrites it, unless a copy is there already."""
    config = folder / "config.yaml"
    if config.exists() and not (folder / EARLIER).exists():
        replace(folder / EARLIER, lambda path: shutil.copyfile(config, path))


def restore_config(folder: Path) -> None:
    """Restore the earlier config.yaml, unless the run trains with the new one."""
    if (folder / EARLIER).exists():
        os.replace(folder / EARLIER, folder / "config.yaml")


def forget_config(folder: Path) -> None:
    """Drop the earlier config.yaml, now that an epoch begins with the new one."""
    (folder / EARLIER).unlink(missing_ok=True)


def _plain(config: Mapping) -> dict:
    """Return a configuration as it would be read from a file, without tuples."""
    return json.loads(json.dumps(config, default=str))


def _differences(old: Mapping, new: Mapping) -> Iterator[tuple[str, str]]:
    """Yield changed options by name, with what they were and are.

    Options in a `_conf` are compared one by one. Options that only one of both has belong
    to another version of ESPnet, and are left out.
    """
    for name in (name for name in old if name in new):
        one, two = old[name], new[name]
        if isinstance(one, dict) and isinstance(two, dict):
            for key in one | two:
                if one.get(key) != two.get(key):
                    where = f"{name}: {key}"
                    yield where, _change(where, one.get(key), two.get(key))
        elif one != two:
            yield name, _change(name, one, two)


def _change(name: str, *values: object) -> str:
    was, now = (v if len(v := repr(value)) <= 100 else f"{v[:97]}..." for value in values)
    return f"{name} was {was}, is {now}"

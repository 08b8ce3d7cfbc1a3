"""The configuration in a stranger's zip may only name what can do no harm.

ESPnet opens, downloads or calls much of what a configuration names: Kaldi's lists of data
run commands, a front end takes a URL, weights may come from anywhere. Here it may only
hold numbers, words, tokens, and names of files in the zip or below the current folder, as
ESPnet's recipes name theirs. The configuration of an experiment's folder is the user's
own, and is not checked.
"""

import re
import reprlib
from pathlib import Path
from typing import Any

from espnet_l0prune.plugin.experiment import values_in
from espnet_l0prune.plugin.s3prl import BUILDERS

# Lists of tokens, which may look like anything.
TOKENS = (
    "token_list",
    "src_token_list",
    "transcript_token_list",
    "non_linguistic_symbols",
)
# Words, and names of files below the current folder.
PLAIN = re.compile(r"[\w.+,<>-]+(/[\w.+,<>-]+)*")
# Types of data that ESPnet reads from files alone; kaldi_ark, for one, runs commands.
DATA_TYPES = (
    "sound",
    "multi_columns_sound",
    "variable_columns_sound",
    "npy",
    "text",
    "text_int",
    "text_float",
    "csv_int",
    "csv_float",
)


# Ends of s3prl's names of models that it does not publish
FROM_A_FILE = ("local", "url", "custom")
# Options that send a training's progress elsewhere, which only its user may set.
TELLS = ("use_wandb", "wandb_project", "wandb_entity", "wandb_name")


def check_foreign(config: dict[str, Any], folder: Path, where: Path) -> None:
    """Raise ValueError for names that a zip's configuration may not have.

    Args:
        config: the options that are taken over
        folder: the folder into which the zip was unpacked
        where: path of the configuration, for the message
    """
    for key, value in config.items():
        if key.endswith("_data_path_and_name_and_type"):
            _check_data(key, value, where)
        if key in TOKENS and isinstance(value, list):
            continue
        _check_upstreams(key, value, where)
        for _, leaf in values_in(value):
            if not _is_plain(leaf, folder):
                raise ValueError(
                    f"{where} has {key}: {reprlib.repr(leaf)}; expected a number, a "
                    "word, or a file in the zip or below this folder. If you know who "
                    "made the zip, unpack it and give the folder of its config.yaml."
                )


def _check_upstreams(key: str, value: Any, where: Path) -> None:
    """Refuse a self-supervised model from a file, unless only lists are read of it.

    Of most kinds, s3prl evaluates or unpickles what a file holds, and `extra_conf` can
    name further files.
    """
    if isinstance(value, list):
        for part in value:
            _check_upstreams(key, part, where)
    if not isinstance(value, dict):
        return
    name = str(value.get("upstream"))
    kind, _, source = name.rpartition("_")
    if (source in FROM_A_FILE and kind not in BUILDERS) or value.get("extra_conf"):
        raise ValueError(
            f"{where} has {key}: upstream: {name}, with extra_conf: "
            f"{value.get('extra_conf')}; expected a model that s3prl publishes by its "
            f"name, or {', '.join(f'{kind}_local' for kind in BUILDERS)}, and no "
            "extra_conf. If you know who made the zip, unpack it and give the folder of "
            "its config.yaml."
        )
    for part in value.values():
        _check_upstreams(key, part, where)


def _check_data(key: str, value: Any, where: Path) -> None:
    for entry in value if isinstance(value, list) else [value]:
        known = isinstance(entry, list) and len(entry) == 3 and entry[2] in DATA_TYPES
        if entry is not None and not known:
            raise ValueError(
                f"{where} has {key}: {reprlib.repr(entry)}; expected a list of [path, "
                f"name, type], of the types {', '.join(DATA_TYPES)}: others, as "
                "kaldi_ark, have lists that can run commands. Give --no_data to `adopt`, "
                "and name your own data to the trainings. If you know who made the zip, "
                "unpack it and give the folder of its config.yaml."
            )


def _is_plain(leaf: Any, folder: Path) -> bool:
    if not isinstance(leaf, str):
        return leaf is None or isinstance(leaf, (int, float))
    if PLAIN.fullmatch(leaf) and ".." not in leaf.split("/"):
        return True
    return "\0" not in leaf and Path(leaf).resolve().is_relative_to(folder.resolve())

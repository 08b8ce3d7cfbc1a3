"""Options that some release of ESPnet wrote, as the parser of this one reads them."""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Mapping

import espnet
import yaml
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_l0prune.plugin.building import task_of

# Options that are gone, and the one that each is nothing without.
BESIDE = {"lora_conf": "use_lora", "save_lora_only": "use_lora"}


def modernize(config: Mapping) -> dict:
    """The same options as this ESPnet reads them, without those that it no longer has, if
    they were switched off.

    Raises:
        ValueError: one that was not; what ESPnet's parser does not take
    """
    task = task_of(argparse.Namespace(**config))
    known = {action.dest for action in task.get_parser()._actions}
    for name in sorted(config.keys() - known):
        if config[name] and config.get(BESIDE.get(name, name)):
            raise ValueError(
                f"{name} is {config[name]!r}, an option that ESPnet {espnet.__version__} "
                f"does not have; expected an experiment without it. Remove {name} from "
                "its config.yaml if the model is the same without."
            )
    left = {name: value for name, value in config.items() if name in known}
    for choices in task.class_choices_list:
        if choices.name == "preprocessor" and left.get("preprocessor"):
            # where its defaults are written out, ESPnet gives it twice what is an option
            # of its own, under this name or, as `cleaner`, another
            default = get_default_kwargs(choices.get_class(str(left["preprocessor"])))
            left["preprocessor_conf"] = {
                name: value
                for name, value in (left.get("preprocessor_conf") or {}).items()
                if not (value is None or name in known)
                or name not in default
                or value != default[name]
            }
    read = vars(parse(left))
    return {name: read[name] for name in left}


def parse(config: Mapping) -> argparse.Namespace:
    """What a training would make of a configuration.

    Raises:
        ValueError: what ESPnet's parser does not take
    """
    parser, said = task_of(argparse.Namespace(**config)).get_parser(), io.StringIO()
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(dict(config), file, allow_unicode=True)
        file.flush()
        try:
            with contextlib.redirect_stderr(said):
                return parser.parse_args(["--config", file.name, "--output_dir", "-"])
        except SystemExit as e:
            reason = said.getvalue().splitlines()[-1]
            raise ValueError(f"ESPnet would not train with this: {reason}") from e

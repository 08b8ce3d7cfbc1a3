"""Options that any release of ESPnet wrote are turned into those of the installed one."""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Mapping

import espnet
import yaml
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_l0prune.plugin.building import task_of

# Options that ESPnet has dropped, each with the option that switched it on.
BESIDE = {"lora_conf": "use_lora", "save_lora_only": "use_lora"}


def modernize(config: Mapping) -> dict:
    """Return the same options in the form of this ESPnet.

    Options that it no longer has are left out if they were switched off.

    Raises:
        ValueError: such an option that was switched on; options that ESPnet's parser
            refuses
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
    kept = {name: value for name, value in config.items() if name in known}
    for choices in task.class_choices_list:
        if choices.name == "preprocessor" and kept.get("preprocessor"):
            # ESPnet passes some of its own options on to the preprocessor, such as
            # `cleaner`, and would pass them twice where the defaults are written out
            default = get_default_kwargs(choices.get_class(str(kept["preprocessor"])))
            kept["preprocessor_conf"] = {
                name: value
                for name, value in (kept.get("preprocessor_conf") or {}).items()
                if not (value is None or name in known)
                or name not in default
                or value != default[name]
            }
    read = vars(parse(kept))
    return {name: read[name] for name in kept}


def parse(config: Mapping) -> argparse.Namespace:
    """Return what a training would make of a configuration.

    Raises:
        ValueError: options that ESPnet's parser refuses
    """
    parser, messages = task_of(argparse.Namespace(**config)).get_parser(), io.StringIO()
    # thousands of tokens would take ESPnet's reader of YAML a second
    parser.set_defaults(token_list=config.get("token_list"))
    rest = {name: value for name, value in config.items() if name != "token_list"}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(rest, file, allow_unicode=True)
        file.flush()
        try:
            with contextlib.redirect_stderr(messages):
                return parser.parse_args(["--config", file.name, "--output_dir", "-"])
        except SystemExit as e:
            reason = messages.getvalue().splitlines()[-1]
            raise ValueError(f"ESPnet would not train with this: {reason}") from e

"""What ESPnet's training wrote is read with checks, and without running any code."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from espnet_l0prune.core.reading import read_tensors, read_yaml
from espnet_l0prune.plugin.building import build_model, refuse_adapters

WHOLE = 32  # how many times larger than its checkpoint an uncut network may be
SMALL_NETWORK = (1_000, 2**26)  # tensors and values that any network may have
LARGEST_OPTION = 2**14  # positions and widths are some thousands
# Rates in Hz, which size no tensor; and what sizes an embedding, whose parameters are
# counted before they are filled
LARGE = ("fs", "sample_rate", "fmin", "fmax", "n_vocab")
SUFFIXES = ".pth", ".ckpt"  # of checkpoints, by ESPnet2 and ESPnet3
# Names of the last checkpoint: by ESPnet2, by ESPnet3, of a cut
LAST = ("latest.pth", "last*.ckpt", "model.pth")
PARTS = (
    *("frontend", "preencoder", "encoder", "decoder", "ctc", "joint_net"),
    *("postencoder", "postdecoder", "deliberationencoder", "promptencoder"),
    *("hier_encoder", "md_encoder", "extra_asr_decoder", "extra_mt_encoder"),
    *("extra_mt_decoder", "st_joint_net", "joint_network"),
)


def read_mapping(path: str | Path, what: str, expected: str) -> dict[str, Any]:
    """Read a YAML mapping; the error says what the file is and what was expected.

    Args:
        path: path of the file
        what: what the file is, for the message
        expected: what was expected of it, for the message

    Raises:
        ValueError: a file that is missing, not plain YAML, or not a mapping with names
    """
    try:
        data = read_yaml(path)
        if not isinstance(data, dict):
            raise TypeError(f"it holds a {type(data).__name__}")
        if not all(isinstance(key, str) for key in data):
            raise TypeError("it has a key that is no name")
    except (ValueError, TypeError) as e:
        raise ValueError(
            f"{what} {path} cannot be read ({e}); expected {expected}"
        ) from e
    return data


def read_config(config_file: str | Path) -> argparse.Namespace:
    """Read an experiment's config.yaml as plain data, without running code.

    Raises:
        ValueError: a file that is missing, or not an experiment's configuration
    """
    expected = "the config.yaml that training wrote into the experiment's folder"
    config = read_mapping(config_file, "configuration", expected)
    if "token_list" not in config:
        raise ValueError(
            f"configuration {config_file} is none of an ESPnet ASR experiment: it has no "
            f"token_list; expected {expected}"
        )
    for name, value in config.items():
        if name.endswith("_conf") and not isinstance(value, dict | None):
            raise ValueError(
                f"configuration {config_file} has no mapping in {name}; expected "
                f"{expected}"
            )
    return argparse.Namespace(**config)


def read_weights(model_file: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint, by name.

    Of a checkpoint of DeepSpeed or Lightning, which holds more, those of its model are
    read, as in ESPnet.

    Raises:
        ValueError: a file that is missing or damaged, or that holds more than tensors
    """
    try:
        state = read_tensors(model_file)
        for name in ("module", "state_dict"):
            state = state[name] if isinstance(state.get(name), dict) else state
        for name, tensor in state.items():
            if not (isinstance(name, str) and isinstance(tensor, torch.Tensor)):
                raise TypeError(f"it holds a {type(tensor).__name__} for weights")
    except (ValueError, TypeError) as e:
        raise ValueError(
            f"{model_file} cannot be loaded: {e}. Expected a complete checkpoint of "
            "plain tensors, as ESPnet's training saves it; if it is damaged or "
            "truncated, take an earlier epoch or train on with --resume"
        ) from e
    return state


def load_weights(model: nn.Module, model_file: str | Path) -> None:
    """Load a checkpoint into a model.

    Raises:
        ValueError: see `read_weights` and `load_finite`
    """
    load_finite(model, read_weights(model_file), model_file)


def load_finite(
    model: nn.Module, state: dict[str, torch.Tensor], model_file: str | Path
) -> None:
    """Load tensors that were read from a file into a model, all of them and no others.

    No weight and no statistic of a norm may be NaN or infinite.

    Args:
        model: the model
        state: the tensors by name
        model_file: where they were read from, for the message

    Raises:
        ValueError: names or shapes that do not fit; a value that is not finite
    """
    load_state(model, state, model_file)
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.numel():
            ends = torch.stack(tensor.aminmax())  # NaN if any value is; no copy
            if not ends.isfinite().all():
                raise ValueError(
                    f"{model_file} has {name} with values that are NaN or infinite; "
                    "expected finite weights. Its training diverged: take a checkpoint "
                    "of an epoch before, or train again with a lower learning rate."
                )


def load_state(model: nn.Module, state: dict, model_file: str | Path) -> None:
    """Load tensors that were read from a file into a model, all of them and no others.

    Args:
        model: the model
        state: the tensors by name
        model_file: where they were read from, for the message

    Raises:
        ValueError: names or shapes that do not fit
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as e:
        raise ValueError(
            f"{model_file} does not fit its configuration: {shorten(str(e), 1000)}. "
            "Expected the config.yaml of the same experiment."
        ) from e


@contextlib.contextmanager
def no_larger_than(state: dict[str, torch.Tensor]) -> Iterator[None]:
    """Let no network be built that is far larger than its checkpoint.

    A few letters of a configuration can ask for a million blocks; in this context,
    building stops at the first few that are too many. A network that was cut is first
    built whole.

    Args:
        state: the tensors of the checkpoint, by name

    Raises:
        ValueError: more than 32 times the checkpoint's tensors or values
    """
    tensors, values = len(state), sum(tensor.numel() for tensor in state.values())
    most = [WHOLE * tensors + SMALL_NETWORK[0], WHOLE * values + SMALL_NETWORK[1]]

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        most[0] -= 1
        most[1] -= 0 if parameter is None else parameter.numel()
        if min(most) < 0:
            raise ValueError(
                f"the configuration describes a network of more than {WHOLE} times the "
                f"{values:,} values of its checkpoint; expected that of the same "
                "experiment"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_sizes(args: argparse.Namespace) -> None:
    """Raise ValueError for options that are larger than any network needs."""
    options = [("input_size", getattr(args, "input_size", None))]
    for part in PARTS:
        options += values_in(getattr(args, f"{part}_conf", None) or {})
    for name, value in options:
        large = isinstance(value, (int, float)) and abs(value) > LARGEST_OPTION
        if large and name not in LARGE:
            raise ValueError(
                f"the configuration has {name}: {value}; expected at most "
                f"{LARGEST_OPTION}, since no network has more"
            )


def values_in(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values that an option holds, however deep, with the name above each."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from values_in(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from values_in(part, name)
    else:
        yield name, value


def load_trained(args: argparse.Namespace, model_file: str | Path) -> Any:
    """Build the model that options describe, and load a checkpoint's weights strictly.

    Raises:
        ValueError: see `check_sizes`, `no_larger_than`, `build_model`, `load_weights`
    """
    check_sizes(args)
    state = read_weights(model_file)
    with no_larger_than(state):
        model = build_model(args)
    load_finite(model, state, model_file)
    return model


def load_model(
    config_file: str | Path, model_file: str | Path
) -> tuple[nn.Module, argparse.Namespace]:
    """Return an experiment's model, with its weights loaded strictly, and its options.

    Raises:
        ValueError: see `read_config`, `refuse_adapters` and `load_trained`
    """
    args = read_config(config_file)
    refuse_adapters(args)
    return load_trained(args, model_file), args


def load_experiment(
    experiment: Path, checkpoint: str
) -> tuple[nn.Module, argparse.Namespace]:
    """Load a checkpoint from an experiment's folder, in evaluation mode.

    Raises:
        ValueError: no such checkpoint; see `load_model`
    """
    model_file = experiment / checkpoint
    if experiment.is_dir() and not model_file.exists():
        names = sorted(p.name for p in experiment.glob("*") if p.suffix in SUFFIXES)
        raise ValueError(
            f"{model_file}: no such checkpoint; expected one of "
            f"{', '.join(names) or 'the .pth files that training writes'}"
        )
    model, args = load_model(experiment / "config.yaml", model_file)
    return model.eval(), args


def averages_of(folder: Path) -> list[str]:
    """Return the names of the averaged checkpoints in an experiment's folder.

    ESPnet2 links to each by a name without the number of epochs in it. ESPnet3 does not,
    and leaves those of fewer epochs beside the last one.
    """
    linked = sorted(p.name for p in folder.glob("*.ave.pth"))
    last: dict[str, Path] = {}
    for path in sorted(folder.glob("*.ave_*best.pth"), key=_age):
        last[path.name.partition(".ave_")[0]] = path
    return linked or sorted(path.name for path in last.values())


def _age(path: Path) -> float:
    return path.lstat().st_mtime


def last_of(folder: Path) -> str:
    """Return the name of the last checkpoint in an experiment's folder, or of a cut's.

    If neither was kept, it is the name of an average. ESPnet3 numbers those of several
    runs in the same folder; it is the newest.
    """
    for pattern in LAST:
        if found := sorted(folder.glob(pattern), key=_age):
            return found[-1].name
    return (averages_of(folder) or ["model.pth"])[0]


def average_of(folder: Path) -> str:
    """Return the name of the averaged checkpoint in an experiment's folder.

    If there is none, it is that of the last checkpoint or of a cut's.

    Raises:
        ValueError: several averages
    """
    averages = averages_of(folder)
    if len(averages) > 1:
        raise ValueError(
            f"{folder} has {', '.join(averages)}; expected one of them in --checkpoint"
        )
    return averages[0] if averages else last_of(folder)

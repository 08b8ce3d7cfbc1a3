"""A package is a folder that measures a profile where there is onnxruntime, but no torch.

It has the graphs that `profile_model` would time, a manifest that says what they are, and
the program that times them: `core/measuring.py`, as it is. What this one writes becomes
the profile here.
"""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espnet_l0prune.core import measuring, profile
from espnet_l0prune.core.files import check_folder, new_folder
from espnet_l0prune.core.measuring import FEWEST, MANIFEST, MOST, VERSION, medians_of
from espnet_l0prune.core.profile import TIMES, Profile
from espnet_l0prune.core.ranges import check
from espnet_l0prune.core.reading import read_json
from espnet_l0prune.core.steps import Step
from espnet_l0prune.deploy.profiling import Variants, about_encoder, make_profile
from espnet_l0prune.deploy.timer import Conditions, input_of, write_graphs

SCRIPT = "measure.py"
FILES = MANIFEST, SCRIPT, "*.onnx", "*.onnx.data"
RUNTIME = "onnxruntime"
LONGEST = 1000  # characters of a machine's description
REMEDY = f"Expected what {SCRIPT} of a package wrote: measure again."


def check_package(out: Path, force: bool) -> None:
    """Raise ValueError unless `out` is new, or a package that `force` may replace.

    Results of an earlier measurement in it are never taken away.
    """
    check_folder(out, force, "package", MANIFEST, FILES)


@torch.no_grad()
def write_package(
    model: nn.Module,
    conditions: Conditions,
    rate: int,
    out: Path,
    step: Step,
    force: bool = False,
) -> None:
    """Write a folder that measures a model's encoder on another device.

    Args:
        model: ESPnet's model, without gates
        conditions: under which it is timed; threads and minutes can be others there
        rate: the audio's samples per second
        out: the folder
        step: is told what is done
        force: whether an earlier package is replaced

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed
        ValueError: a folder that may not be written; see `Variants` and `write_graphs`
        OSError: the folder cannot be written
    """
    check_package(out, force)
    models = Variants(model.encoder).models(model)
    (feats, *_), _ = input_of(models, conditions.seconds, rate)
    out = out.resolve()  # a link to a folder is kept
    with new_folder(out, lambda: check_package(out, force)) as part:
        files = write_graphs(models, conditions.int8, part, step)
        manifest = {
            "version": VERSION,
            "about": {
                **about_encoder(model, conditions.seconds),
                "seconds": conditions.seconds,
                "int8": conditions.int8,
            },
            "threads": conditions.threads,
            "minutes": conditions.minutes,
            "noisiest": profile.NOISIEST,
            "shape": [*feats.shape],
            "graphs": {name: file.name for name, file in files.items()},
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
        (part / SCRIPT).write_bytes(Path(measuring.__file__).read_bytes())


def profile_from(model: nn.Module, file: Path) -> Profile:
    """Return the profile that a package measured.

    Args:
        model: the model of which the package is
        file: what the package wrote, which anybody may have changed

    Raises:
        ValueError: a file that cannot be read, that is damaged or of another model, that
            lacks graphs, or that has impossible times
    """
    where = str(file)
    try:
        data = read_json(file)
    except ValueError as e:
        raise ValueError(f"{where} cannot be read ({e}). {REMEDY}") from e
    if not isinstance(data, Mapping) or data.get("version") != VERSION:
        raise ValueError(f"{where} has no results of version {VERSION}. {REMEDY}")
    try:
        said = {**data["about"]}
        seconds, int8 = said.pop("seconds"), said.pop("int8")
        threads, machine, times = (data[k] for k in ("threads", "machine", "times"))
        check("command line", {"--seconds": seconds, "--threads": threads})
        if type(int8) is not bool:
            raise TypeError(f"int8 is {reprlib.repr(int8)}")
        text = isinstance(machine, str) and machine.isprintable()
        if not text or len(machine) > LONGEST:
            raise TypeError(f"machine is {reprlib.repr(machine)}")
        if not isinstance(times, Mapping):
            raise TypeError(f"times are {reprlib.repr(times)}")
    except (KeyError, TypeError, ValueError) as e:
        raise ValueError(f"{where} is damaged ({type(e).__name__}: {e}). {REMEDY}") from e
    about = about_encoder(model, seconds)
    if said != about:
        raise ValueError(
            f"{where} is of an encoder with {reprlib.repr(said)}, and this one has "
            f"{about}; expected results of this experiment's package. Give the "
            "experiment that the package was written of."
        )
    variants = Variants(model.encoder)
    _check_times(times, {variants.name_of(key) for key, _ in variants.plans()}, where)
    how = Conditions(seconds, RUNTIME, threads, int8)
    return make_profile(variants, about, how, machine, *medians_of(times))


def _check_times(times: Mapping[str, Any], names: set[str], where: str) -> None:
    """Raise ValueError unless there are times of all graphs, and of no other ones."""
    for what, some in (("no", names - {*times}), ("other", {*times} - names)):
        if some:
            raise ValueError(
                f"{where} has {what} times of {len(some)} graphs, the first of which is "
                f"{reprlib.repr(min(some))}; expected those of {len(names)}. Write the "
                "package again with this version, and measure again."
            )
    rounds = {len(one) if isinstance(one, list) else 0 for one in times.values()}
    (number, *others) = rounds
    if others or not FEWEST < number <= MOST + 1:
        raise ValueError(
            f"{where} has times of {sorted(rounds)} rounds; expected as many of each "
            f"graph, from {FEWEST + 1} to {MOST + 1}. {REMEDY}"
        )
    for name, one in times.items():
        for time in one:
            if time not in TIMES or not time:
                raise ValueError(
                    f"{where} has a time of {reprlib.repr(time)} of {name!r}; expected "
                    f"{TIMES} above 0. {REMEDY}"
                )

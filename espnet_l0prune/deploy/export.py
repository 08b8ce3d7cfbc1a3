"""Pack a model for the model zoo: as it is, or in the shape of plain ESPnet."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from torch import nn

from espnet_l0prune.deploy.adopt import DATA, RUN
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.deploy.card import About, write_card
from espnet_l0prune.deploy.inspect import inspect_model
from espnet_l0prune.deploy.stock import to_stock
from espnet_l0prune.deploy.verify import TOLERANCE, compare, outputs, require_equal
from espnet_l0prune.plugin.experiment import load_experiment, load_model, task_of
from espnet_l0prune.plugin.workload import sites_of

TEACHER = ("teacher_config", "teacher_model_file")
TRAINING_FILES = ("rir_scp", "noise_scp", "non_linguistic_symbols")
# ESPnet's packing, also of slu, which its command does not know
PACK = """
import sys
from espnet2.main_funcs.pack_funcs import pack
task, *extras = sys.argv[1:]
files = {f"{task}_model_file": "model.pth"}
pack(files, {f"{task}_train_config": "config.yaml"}, "packed.zip", extras)
"""


def export(
    experiment: Path,
    checkpoint: str,
    out: Path,
    form: str,
    about: About,
    force: bool = False,
) -> tuple[int, int]:
    """Write a zip that `from_pretrained` takes, with a model card; or nothing.

    It holds what loading needs, RESULTS.md and images of the experiment, and neither a
    teacher nor paths of this machine. What was packed is unpacked, loaded, and must
    compute what the experiment does.

    Args:
        experiment: without gates
        form: `plugin`, as small as it was cut; or `stock`, which plain ESPnet loads

    Returns:
        the model's parameters, and those of the packed one

    Raises:
        ValueError: gates; a structure that plain ESPnet cannot express; an `out` that
            exists and no `force`; files that are missing or damaged
    """
    if out.exists() and not force:
        raise ValueError(f"{out} exists; choose another --out, or give --force")
    if out.suffix != ".zip" or out.is_dir():
        raise ValueError(f"--out is {out}; expected the name of a .zip")
    model, args = load_experiment(experiment, checkpoint)
    if any(site.gates for site in sites_of(model)):
        raise ValueError(
            f"{experiment} has gates; expected a model that was cut, and fine-tuned"
        )
    expected, packed, tolerance = outputs(model), model, TOLERANCE
    options = args
    if form == "stock":
        packed, options, tolerance = to_stock(model, args)
        require_equal(compare(expected, outputs(packed)), tolerance)
    task = task_of(args).__module__.rpartition(".")[2]
    results = experiment / "RESULTS.md"
    found = inspect_model(model, args)
    card = write_card(
        about, task, form == "plugin", args, found, results if results.exists() else None
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as part:
        folder = Path(part) / "packed"
        folder.mkdir()
        (folder / "README.md").write_text(card, "utf-8")
        extras = ["README.md"]
        for name in ("RESULTS.md", "images"):
            if (experiment / name).is_dir():
                shutil.copytree(experiment / name, folder / name)
            elif (experiment / name).exists():
                shutil.copyfile(experiment / name, folder / name)
            else:
                continue
            extras.append(name)
        extras += _fill(folder, packed, vars(options))
        _pack(folder, task, extras)
        files = unpack_model(folder / "packed.zip", Path(part) / "unpacked")
        require_equal(compare(expected, outputs(load_model(*files)[0].eval())), tolerance)
        (folder / "packed.zip").replace(out)
    sizes = (sum(p.numel() for p in m.parameters()) for m in (model, packed))
    return next(sizes), next(sizes)


def _fill(folder: Path, model: nn.Module, config: dict) -> list[str]:
    """Write the model and its configuration; return the files that it names."""
    torch.save(model.state_dict(), folder / "model.pth")
    extras, config = [], dict(config)
    conf = dict(config.get("normalize_conf") or {})
    for place, key, name in (
        (conf, "stats_file", "feats_stats.npz"),
        (config, "bpemodel", "bpe.model"),
        (config, "src_bpemodel", "src_bpe.model"),
    ):
        if place.get(key):
            shutil.copyfile(place[key], folder / name)
            place[key] = name
            extras.append(name)
    config["normalize_conf"] = conf
    config["model_conf"] = {
        k: v for k, v in config["model_conf"].items() if k not in TEACHER
    }
    for key in list(config):
        listed = key == "non_linguistic_symbols" and not isinstance(config[key], str)
        kept = key == "init" or listed  # ESPnet's build_model reads it
        if key in (*RUN, *DATA, *TRAINING_FILES) and not kept:
            del config[key]
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, "utf-8")
    return extras


def _pack(folder: Path, task: str, extras: list[str]) -> None:
    """Write packed.zip by ESPnet.

    In the folder, with plain files: it keeps absolute paths and follows links, which no
    other machine has.
    """
    command = [sys.executable, "-c", PACK, task, *extras]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ESPnet's packing failed: {done.stderr[-1000:]}")

"""A finished model is packed for the model zoo."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from espnet_l0prune.core.files import beside, check_file, replace, save
from espnet_l0prune.core.python import last_line, run_python
from espnet_l0prune.core.steps import Step, how_long, quiet
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.deploy.card import (
    About,
    load_finished,
    results_of,
    write_card,
)
from espnet_l0prune.deploy.choice import DATA
from espnet_l0prune.deploy.exports import find_form
from espnet_l0prune.deploy.extras import (
    check_statistics,
    check_tokenizer,
    copy_checked,
    copy_results,
)
from espnet_l0prune.deploy.inspect import inspect_model
from espnet_l0prune.plugin.building import task_name
from espnet_l0prune.plugin.experiment import load_model
from espnet_l0prune.plugin.resume import RUN

TEACHER = ("teacher_config", "teacher_model_file")
# token types whose `bpemodel` is a name: on the hub, or one of Whisper's
NO_FILES = ("hugging_face", "whisper_en", "whisper_multilingual")
TRAINING_FILES = ("rir_scp", "noise_scp", "non_linguistic_symbols")
# A task's name in what ESPnet's inference takes
PACKED_AS = {"s2t_ctc": "s2t", "asr_transducer": "asr"}
# ESPnet's packing, which also packs slu, unlike its command
PACK = """
import sys
from espnet2.main_funcs.pack_funcs import pack
task, *extras = sys.argv[1:]
files = {f"{task}_model_file": "model.pth"}
pack(files, {f"{task}_train_config": "config.yaml"}, "packed.zip", extras)
"""


@dataclass
class Exported:
    """An `Exported` says what was written.

    Attributes:
        verified: a line that says how close the packed model is to the experiment's
        packages: the packages that loading it needs in addition to ESPnet's
    """

    verified: str
    packages: str


def export(
    experiment: Path,
    checkpoint: str,
    out: Path,
    form: str,
    about: About,
    force: bool = False,
    int8: bool = False,
    step: Step = quiet,
) -> Exported:
    """Write a zip that `from_pretrained` takes, with a model card; or nothing.

    The zip holds what loading needs, and the experiment's RESULTS.md and images, but
    neither a teacher nor paths of this machine. It is then unpacked and loaded, and must
    compute what the experiment does; in `int8`, nearly so.

    Args:
        experiment: the experiment's folder; the model has no gates
        checkpoint: the name of the checkpoint to pack
        out: the zip to write
        form: a key of `exports.FORMS`
        about: what the model card cannot know by itself
        force: whether to replace an earlier file
        int8: whether to quantize the model, if the form can be
        step: is called with the name of each step as it begins

    Raises:
        ImportError: a package that `onnx` needs is not installed
        ValueError: gates; a structure that plain ESPnet cannot express; a network that
            torch cannot export; a packed model that computes something else; an `out`
            that is not a .zip, or exists without `force`; `int8` for another form; files
            that are missing or damaged
        OSError: `out` is not writable
        RuntimeError: ESPnet's packing failed
    """
    check_file(out, force)
    if out.suffix != ".zip":
        raise ValueError(f"--out is {out}; expected the name of a .zip")
    made = find_form(form)
    if int8 and not made.quantizes:
        raise ValueError(
            f"--int8 is for onnx, not for {form}: a model that torch runs is quantized "
            "where it is loaded, by Speech2Text's quantize_asr_model"
        )
    time = f": {how_long(experiment / checkpoint)}" if made.has_rate else ""
    step(f"loading {experiment}{time}")
    model, args = load_finished(experiment, checkpoint)
    with beside(out) as part:
        folder = part / "packed"
        folder.mkdir()
        step(f"making the {form} form of it")
        packed = made.pack(model, args, folder, int8)
        save(packed.state, folder / "model.pth")
        extras = [*packed.files, *_write_config(folder, vars(packed.options))]
        extras += copy_results(experiment, folder)
        task = task_name(args)
        step("counting it, dense and pruned, for the card")
        card = write_card(
            about,
            task,
            packed.packages,
            args,
            inspect_model(model, args),
            results_of(experiment),
            packed.files,
        )
        (folder / "README.md").write_text(card, "utf-8")
        step("packing")
        _pack(folder, task, ["README.md", *extras])
        step("unpacking, loading and comparing what was packed")
        files = unpack_model(folder / "packed.zip", part / "unpacked")
        verified = packed.verify(load_model(*files)[0].eval())
        replace(out, (folder / "packed.zip").rename, force)
    return Exported(verified, packed.packages)


def _write_config(folder: Path, config: dict) -> list[str]:
    """Write a configuration and the files that it names; return their names.

    Raises:
        ValueError: see `copy_checked`
    """
    extras, config = [], dict(config)
    conf = dict(config.get("normalize_conf") or {})
    what = "stats_file of normalize_conf, the sums of features"
    files = [(conf, "stats_file", "feats_stats.npz", what, check_statistics)]
    for side in ("", "src_"):
        key, kind = f"{side}bpemodel", config.get(f"{side}token_type")
        what = f"{key}, a model of sentencepiece's"
        if kind == "bpe":
            files.append((config, key, f"{side}bpe.model", what, check_tokenizer))
        elif key in config and kind not in NO_FILES:
            config[key] = None  # nothing reads this
    for place, key, name, what, check in files:
        if place.get(key):
            copy_checked(place[key], folder / name, what, check)
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
    """Let ESPnet write packed.zip.

    It runs in the folder and with plain files, since ESPnet keeps absolute paths and
    follows links, which no other machine has.
    """
    done = run_python(PACK, PACKED_AS.get(task, task), *extras, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"ESPnet's packing failed: {last_line(done)}")

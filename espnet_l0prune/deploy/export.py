"""Pack a model for the model zoo: as it is, as plain ESPnet has it, or as ONNX."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from torch import Tensor, nn

from espnet_l0prune.core.files import beside, check_file, replace, save
from espnet_l0prune.core.python import last_line, run_python
from espnet_l0prune.core.steps import Step, how_long, quiet
from espnet_l0prune.deploy.adopt import DATA, RUN
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.deploy.card import (
    PLUGIN_PACKAGES,
    About,
    load_finished,
    results_of,
    write_card,
)
from espnet_l0prune.deploy.extras import (
    check_statistics,
    check_tokenizer,
    copy_checked,
    copy_results,
)
from espnet_l0prune.deploy.inspect import inspect_model
from espnet_l0prune.deploy.onnx import (
    INT8_TOLERANCE,
    data_of,
    distance,
    divergence,
    furthest,
    shortest,
    write_onnx,
)
from espnet_l0prune.deploy.onnx import TOLERANCE as ONNX_TOLERANCE
from espnet_l0prune.deploy.stock import to_stock
from espnet_l0prune.deploy.verify import TOLERANCE, compare, outputs, require_equal
from espnet_l0prune.plugin.experiment import load_model, task_name
from espnet_l0prune.plugin.weight_names import portable

TEACHER = ("teacher_config", "teacher_model_file")
# token types whose `bpemodel` is a name: of the hub, or of Whisper's own
NO_FILES = ("hugging_face", "whisper_en", "whisper_multilingual")
TRAINING_FILES = ("rir_scp", "noise_scp", "non_linguistic_symbols")
# ESPnet's packing, also of slu, which its command does not know
PACK = """
import sys
from espnet2.main_funcs.pack_funcs import pack
task, *extras = sys.argv[1:]
files = {f"{task}_model_file": "model.pth"}
pack(files, {f"{task}_train_config": "config.yaml"}, "packed.zip", extras)
"""


@dataclass
class Form:
    """A model as it is packed.

    Args:
        state: of model.pth
        options: of config.yaml
        verify: says how far a model that was loaded is from the experiment's, and raises
            ValueError where that is too far
        packages: that loading it takes, beside ESPnet's
        files: more files in the folder, and what each is
    """

    state: dict[str, Tensor]
    options: argparse.Namespace
    verify: Callable[[nn.Module], str]
    packages: str = ""
    files: dict[str, str] = field(default_factory=dict)


def plugin_form(model: nn.Module, args: argparse.Namespace) -> Form:
    """As small as it was cut."""
    verify = _same_as(model, TOLERANCE)
    return Form(portable(model), args, verify, packages=PLUGIN_PACKAGES)


def stock_form(model: nn.Module, args: argparse.Namespace) -> Form:
    """As plain ESPnet loads it.

    Raises:
        ValueError: see `to_stock`; a stock-shaped model that computes something else
    """
    stock, options, tolerance = to_stock(model, args)
    verify = _same_as(model, tolerance)
    verify(stock)
    return Form(portable(stock), options, verify)


def _same_as(model: nn.Module, tolerance: float) -> Callable[[nn.Module], str]:
    expected = outputs(model)
    before = sum(p.numel() for p in model.parameters())

    def verify(loaded: nn.Module) -> str:
        require_equal(compare(expected, outputs(loaded)), tolerance)
        after = sum(p.numel() for p in loaded.parameters())
        zeros = f", {after - before:,} of them zeros" if after > before else ""
        return f"{after:,} parameters{zeros}"

    return verify


def onnx_form(
    model: nn.Module, args: argparse.Namespace, folder: Path, int8: bool
) -> Form:
    """With graphs for onnxruntime, which `encoder: onnx` and `decoder: onnx` run; folder,
    int8 and errors as of `write_onnx`."""
    files = {}
    for graph in write_onnx(model, folder, int8):
        files[graph.file] = " ".join(str(graph.__doc__).split())
        if (data := data_of(folder / graph.file)).exists():
            files[data.name] = f"the weights of `{graph.file}`, to be left beside it"
    conf, state = dict(vars(args)), portable(model)
    for part in ("encoder", "decoder"):
        if f"{part}.onnx" in files:
            conf[part], conf[f"{part}_conf"] = "onnx", {"file": f"{part}.onnx"}
            state = {k: v for k, v in state.items() if not k.startswith(f"{part}.")}
    conf["encoder_conf"]["shortest"] = shortest(model.encoder)

    def verify(loaded: nn.Module) -> str:
        apart = furthest(model, loaded, divergence if int8 else distance)
        limit = INT8_TOLERANCE if int8 else ONNX_TOLERANCE
        what = "mean divergence, in nats," if int8 else "difference of log-probabilities"
        if not apart <= limit:  # NaN neither
            raise ValueError(
                f"the packed model is not the experiment's: the largest {what} is "
                f"{apart:.1e}; expected at most {limit:.0e}. Nothing was written. Export "
                f"{'it without --int8' if int8 else 'a plugin or a stock model'}."
            )
        return f"the largest {what} is {apart:.1e}"

    options = argparse.Namespace(**conf)
    return Form(state, options, verify, f" onnxruntime{PLUGIN_PACKAGES}", files)


def export(
    experiment: Path,
    checkpoint: str,
    out: Path,
    form: str,
    about: About,
    force: bool = False,
    int8: bool = False,
    step: Step = quiet,
) -> str:
    """Write a zip that `from_pretrained` takes, with a model card; or nothing.

    It holds what loading needs, RESULTS.md and images of the experiment, and neither a
    teacher nor paths of this machine. What was packed is unpacked, loaded, and must
    compute what the experiment does; in `int8`, nearly so.

    Args:
        experiment: without gates
        out: the zip
        form: `plugin`, `stock` or `onnx`
        int8: quantize the encoder and the decoder of `onnx`
        step: is told what begins

    Returns:
        a line on what was written

    Raises:
        ImportError: what `onnx` needs is not installed
        ValueError: gates; a structure that plain ESPnet cannot express; a network that
            torch cannot export; a packed model that computes something else; an `out`
            that is no .zip, or exists and no `force`; `int8` of another form; files that
            are missing or damaged
        OSError: `out` is not writable
        RuntimeError: ESPnet's packing failed
    """
    check_file(out, force)
    if out.suffix != ".zip":
        raise ValueError(f"--out is {out}; expected the name of a .zip")
    if int8 and form != "onnx":
        raise ValueError(
            f"--int8 is for onnx, not for {form}: a model that torch runs is quantized "
            "where it is loaded, by Speech2Text's quantize_asr_model"
        )
    # of torch's ONNX exporter no rate was measured
    time = "" if form == "onnx" else f": {how_long(experiment / checkpoint)}"
    step(f"loading {experiment}{time}")
    model, args = load_finished(experiment, checkpoint)
    with beside(out) as part:
        folder = part / "packed"
        folder.mkdir()
        step(f"making the {form} form of it")
        if form == "onnx":
            packed = onnx_form(model, args, folder, int8)
        else:
            packed = {"plugin": plugin_form, "stock": stock_form}[form](model, args)
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
        line = packed.verify(load_model(*files)[0].eval())
        replace(out, (folder / "packed.zip").rename, force)
    return line


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
            config[key] = None  # nothing reads it
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
    """Write packed.zip by ESPnet.

    In the folder, with plain files: it keeps absolute paths and follows links, which no
    other machine has.
    """
    done = run_python(PACK, task, *extras, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"ESPnet's packing failed: {last_line(done)}")

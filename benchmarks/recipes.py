"""Does the whole route work on every training configuration of ESPnet's recipes?

Each configuration is parsed by its task's own parser and made small (see `shrink`). The
model gets random weights in place of a training, `adopt` writes what to train next, and
ESPnet's own command prunes for some updates through all phases, `cut` cuts, and one epoch
of fine-tuning follows. The encoder is pruned by half; where the front end is a
self-supervised model, the whole model, by 40%. The table says where each one ended, and
with which message.
"""

import collections
import contextlib
import csv
import fnmatch
import importlib
import io
import logging
import math
import shlex
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import parser, start, write
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump
from stand_ins import family_of, stand_in

from espnet_l0prune.deploy.adopt import adopt
from espnet_l0prune.deploy.choice import Choice
from espnet_l0prune.deploy.cut import cut_experiment
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.testing.s3prl import SIZES

# A recipe's folder: its task, the class, and the data beside `speech` and `text`
TASKS = {
    "asr1": ("asr", "ASRTask", ()),
    "slu1": ("slu", "SLUTask", ()),
    "st1": ("st", "STTask", ("src_text",)),
    "asr2": ("mt", "MTTask", ("src_text",)),
    "s2t1": ("s2t", "S2TTask", ("text_prev", "text_ctc")),
}
COLUMNS = (
    *("configuration", "task", "encoder", "decoder", "outcome", "message"),
    "stand_ins",  # for published models
)
SECONDS = 60  # of the processor, that a configuration may take
SIZE = 20  # of the features
STEP = 160  # samples of audio in place of a frame of features, where those are read
FRAMES = 120  # of the longest utterance
UTTERANCES = 4
LETTERS = "ABCDEFGH"
TOKENS = [
    "<blank>", "<unk>", "<na>", "<nolang>", "<eng>", "<asr>", "<notimestamps>", "<0.00>",
    "<30.00>", *LETTERS, "<space>", "<sos>", "<eos>", "<sop>", "<sos/eos>",
]  # fmt: skip
BLOCKS = 2
# What a training here has in place of the recipe's, which is about the machine
TRAINING = {
    "token_list": TOKENS,
    "token_type": "char",
    "normalize": "utterance_mvn",
    "num_workers": 0,
    "num_att_plot": 0,
    "use_tensorboard": False,
    "use_matplotlib": False,
    "batch_type": "unsorted",
    "batch_size": 2,
    "accum_grad": 1,
    "num_iters_per_epoch": None,
    "iterator_type": "sequence",
    "allow_variable_data_keys": True,
}


def find(egs2: Path) -> list[Path]:
    """The configurations of recognizers: those with an encoder, without links."""
    return sorted(
        path
        for recipe in TASKS
        for path in egs2.glob(f"*/{recipe}/conf/**/*.yaml")
        if not path.is_symlink() and "\nencoder:" in "\n" + path.read_text("utf-8")
    )


def shrink(conf: dict[str, Any], task: str) -> dict[str, Any]:
    """A configuration, small and without what cannot be had here.

    Two blocks in encoder and decoder and narrow layers, with as many heads; features, of
    which masks leave some, for a front end and a preencoder, if the front end is no
    self-supervised model; utterance_mvn for global_mvn, which needs statistics; no
    augmentation with noises and rooms; no files to begin from.
    """
    small = {**conf, **TRAINING, "input_size": SIZE}
    dropped = ["noise_scp", "rir_scp", "init_param"]
    if family_of(conf):  # a self-supervised model, which reads audio
        del small["input_size"]
        small["preencoder_conf"] = {
            **(conf.get("preencoder_conf") or {}),
            **{"input_size": SIZES["encoder_embed_dim"], "output_size": SIZE},
        }
    else:
        dropped += ["frontend", "preencoder"]
    for name in dropped:
        small.pop(name, None)
        small.pop(f"{name}_conf", None)
    specaug = small.get("specaug_conf") or {}
    if "freq_mask_width_range" in specaug:
        small["specaug_conf"] = {**specaug, "freq_mask_width_range": [0, SIZE // 4]}
    if conf.get("encoder") == "whisper":  # which computes its features
        small |= {"input_size": 1, "normalize": None}
        small["model_conf"] = {**(conf.get("model_conf") or {}), "sym_sos": "<sos>"}
        small["model_conf"]["sym_eos"] = "<eos>"
    if task == "mt":  # whose features are embeddings of discrete units
        del small["input_size"], small["normalize"]
        small |= {"frontend": "embed", "frontend_conf": {"embed_dim": SIZE}}
        small |= {"src_token_list": TOKENS, "src_token_type": "char"}
    if task == "st":
        small |= {"src_token_list": TOKENS, "src_token_type": "char"}
    if "postdecoder" in conf:
        small["transcript_token_list"] = TOKENS
    if task == "s2t":
        small["preprocessor_conf"] = {
            **(conf.get("preprocessor_conf") or {}),
            **{"speech_length": 1.2, "speech_init_silence": 0.1, "fs": 100},
            **{"notime_symbol": "<notimestamps>", "first_time_symbol": "<0.00>"},
            **{"last_time_symbol": "<30.00>"},
        }
        small["non_linguistic_symbols"] = [t for t in TOKENS if t.startswith("<")]
    parts = [name for name in small if name.endswith(("encoder_conf", "decoder_conf"))]
    heads = [(small[name] or {}).get("attention_heads", 4) for name in parts]
    size = 4 * math.lcm(4, *heads)
    for name in parts:
        small[name] = _smaller(small[name] or {}, size)
    if small.get("hier_encoder"):  # it reads what the encoder writes
        small["hier_encoder_conf"]["output_size"] = size
    if "aux_ctc" in (model := small.get("model_conf") or {}):
        aux = dict.fromkeys(["1"], next(iter(model["aux_ctc"].values())))
        small["model_conf"] = {**model, "aux_ctc": aux}
    return small


def _smaller(conf: dict[str, Any], size: int) -> dict[str, Any]:
    sizes = {
        "num_blocks": BLOCKS,
        "num_layers": 1,
        "n_layers": BLOCKS,
        "output_size": size,
        "hidden_size": size,
        "linear_units": 32,
        "cgmlp_linear_units": 32,
        "interctc_layer_idx": [1],
        "block_size": 8,
        "hop_size": 4,
        "look_ahead": 2,
        "num_blocks_sd": 1,
        "attention_windows": [4] * BLOCKS,
        "attention_dilation": [1] * BLOCKS,
    }
    found = {**conf, **{name: value for name, value in sizes.items() if name in conf}}
    for name, value in conf.items():
        if isinstance(value, list) and len(value) == conf.get("num_blocks"):
            found[name] = found[name][:BLOCKS]
    return found


def make_data(folder: Path) -> None:
    """Random features and texts of the same utterances, in Kaldi's form."""
    rng, lines = np.random.default_rng(0), collections.defaultdict(list)
    for i in range(UTTERANCES):
        frames = FRAMES - 10 * i
        feats = rng.standard_normal((frames, SIZE), np.float32)
        np.save(folder / f"{i}.npy", feats)
        text = "".join(rng.choice(list(LETTERS), 5))
        lines["speech"].append(f"{folder}/{i}.npy")
        lines["shape"].append(f"{frames},{SIZE}")
        np.save(folder / f"wave{i}.npy", 0.1 * rng.standard_normal(frames * STEP))
        lines["wave"].append(f"{folder}/wave{i}.npy")
        lines["samples"].append(f"{frames * STEP}")
        lines["plain"].append(text)
        lines["long"].append(text * 20)
        lines["owsm"].append(f"<eng><asr><0.00>{text}<30.00>")
        lines["none"].append("<na>")
    for name, entries in lines.items():
        text = "".join(f"u{i} {entry}\n" for i, entry in enumerate(entries))
        (folder / name).write_text(text, "utf-8")


def data_options(
    data: Path, task: str, more: tuple[str, ...], audio: bool
) -> dict[str, Any]:
    """Training and validation data of a task, which are features unless asked for."""
    speech, shape = ("wave", "samples") if audio else ("speech", "shape")
    entries = [] if task == "mt" else [[f"{data}/{speech}", "speech", "npy"]]
    text = "owsm" if task == "s2t" else "plain"
    entries.append([f"{data}/{text}", "text", "text"])
    for name in more:
        kind = {"text_prev": "none", "src_text": "long"}.get(name, "plain")
        entries.append([f"{data}/{kind}", name, "text"])
    options: dict[str, Any] = {}
    for part in ("train", "valid"):
        options[f"{part}_data_path_and_name_and_type"] = entries
        options[f"{part}_shape_file"] = [f"{data}/{shape}"]
    return options


def save_dense(conf: dict[str, Any], task: Any, folder: Path) -> None:
    """Write what a training leaves: config.yaml, and the average of models, if ESPnet can
    build any; by the parser of the release that knew all options of the recipe."""
    known = {action.dest for action in task.get_parser()._actions}
    (folder / "now.yaml").write_text(
        yaml.safe_dump({k: v for k, v in conf.items() if k in known}), "utf-8"
    )
    command = ["--config", str(folder / "now.yaml"), "--output_dir", str(folder)]
    args = task.get_parser().parse_args(command)
    for name in set(conf) - known:
        setattr(args, name, conf[name])
    file = folder / "valid.acc.ave.pth"
    torch.manual_seed(0)
    try:
        torch.save(build_model(args).state_dict(), file)
    except (ValueError, ImportError):
        torch.save({}, file)  # `adopt` says it again, if it asks for the model at all
    text = yaml_no_alias_safe_dump(vars(args))
    (folder / "config.yaml").write_text(text, "utf-8")


def follow(config: Path, egs2: Path, data: Path, work: Path) -> dict[str, str]:
    """The row of a configuration."""
    name, cls, more = TASKS[config.relative_to(egs2).parts[1]]
    conf = yaml.safe_load(config.read_text("utf-8"))
    row = {
        "configuration": str(config.relative_to(egs2.parent)),
        "task": name,
        "encoder": conf.get("encoder") or "",
        "decoder": conf.get("decoder") or "",
        "stand_ins": "",
    }
    stage, said = "build", io.StringIO()
    try:
        with _at_most(SECONDS), contextlib.redirect_stderr(said):
            task = getattr(importlib.import_module(f"espnet2.tasks.{name}"), cls)
            more = (*more, *(conf.get("aux_ctc_tasks") or ()))
            more += ("transcript",) * ("postdecoder" in conf)
            if conf.get("preprocessor") == "multi":  # a text for each speaker
                more += tuple(conf["preprocessor_conf"]["text_name"][1:])
            small, replaced = stand_in(shrink(conf, name), data)
            row["stand_ins"] = ", ".join(replaced)
            audio = conf.get("encoder") == "whisper" or bool(family_of(conf))
            small |= data_options(data, name, more, audio)
            (work / "dense").mkdir()
            save_dense(small, task, work / "dense")
            stage = "adopt"
            choice = Choice(epochs=(4, 1))
            if family_of(conf):  # mBART's decoder holds half of such a model, and stays
                choice = Choice({"params": 0.4}, "model", epochs=(4, 1))
            found = adopt(work / "dense", work / "l0", None, choice)
            prune, _, finetune = map(shlex.split, found.commands)
            stage = "training"
            task.main(cmd=prune[3:])
            stage = "cut"
            cut_experiment(work / "l0/pruned", work / "l0/cut")
            stage = "fine-tuning"
            task.main(cmd=finetune[3:])
        return row | {"outcome": "ok", "message": ""}
    except (ValueError, ImportError, OSError, RuntimeError) as e:
        outcome = "refused" if stage == "adopt" else f"fails in {stage}"
        message = str(e)
    except SystemExit:  # of a parser
        outcome, message = f"fails in {stage}", said.getvalue().splitlines()[-1]
    except Exception as e:
        outcome, message = f"CRASH in {stage}", f"{type(e).__name__}: {e}"
        logging.debug(traceback.format_exc())
    message = " ".join(message.replace(str(work), "EXP").split())
    return row | {"outcome": outcome, "message": message}


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """A while that ends with an error after so many seconds of the processor."""

    def stop(*_) -> None:
        raise RuntimeError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(configs: list[Path], egs2: Path, keep: Callable[[dict], None]) -> None:
    """Follow each configuration; hand over each row as soon as it is there."""
    with tempfile.TemporaryDirectory() as folder:
        data, work = Path(folder) / "data", Path(folder) / "work"
        data.mkdir()
        make_data(data)
        begin = time.monotonic()
        for done, config in enumerate(configs, 1):
            work.mkdir()
            row = follow(config, egs2, data, work)
            shutil.rmtree(work)
            keep(row)
            left = (time.monotonic() - begin) / done * (len(configs) - done) / 60
            print(
                f"{done}/{len(configs)}, {left:.0f} min left: {row['configuration']}: "
                f"{row['outcome']}: {row['message']}",
                flush=True,
            )


def read(out: Path | None) -> list[dict[str, str]]:
    """The rows of an earlier run, none without its file."""
    if out is None or not out.exists():
        return []
    with out.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def append(out: Path, row: dict[str, str]) -> None:
    """Add a row to a table, with a headline if it is new."""
    new = not out.exists()
    with out.open("a", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        if new:
            table.writeheader()
        table.writerow(row)


def make_tree(folder: Path) -> Path:
    """A tree of one recipe, where a run only has to work: one that can be pruned, and one
    that cannot."""
    egs2 = folder / "egs2"
    (egs2 / "one/asr1/conf").mkdir(parents=True)
    for encoder, size in (("transformer", "num_blocks"), ("vgg_rnn", "num_layers")):
        text = f"encoder: {encoder}\nencoder_conf: {{{size}: 3}}\n"
        (egs2 / f"one/asr1/conf/train_{encoder}.yaml").write_text(text, "utf-8")
    return egs2


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--egs2", type=Path, help="of an ESPnet tree")
    options.add_argument("--out", type=Path, help="a table to write, or to go on with")
    options.add_argument("--only", default="*", help="configurations, such as */slu1/*")
    options.add_argument("--limit", type=int, help="no more than so many")
    args = options.parse_args(argv)
    start(args)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        egs2 = args.egs2 or (args.quick and make_tree(Path(folder)))
        if not egs2 or not egs2.is_dir():
            raise SystemExit(f"--egs2 is {egs2}; expected the folder of an ESPnet tree")
        rows = read(args.out)
        there = {row["configuration"] for row in rows}
        todo = [
            path
            for path in find(egs2)
            if fnmatch.fnmatch(str(path), args.only)
            and str(path.relative_to(egs2.parent)) not in there
        ]

        def keep(row: dict[str, str]) -> None:
            rows.append(row)
            if args.out:
                append(args.out, row)

        run(todo[: args.limit], egs2, keep)
    counts = collections.Counter((row["outcome"], row["message"]) for row in rows)
    table = [
        {"configurations": n, "outcome": outcome, "message": message}
        for (outcome, message), n in counts.most_common()
    ]
    write(args, table)


if __name__ == "__main__":
    main()

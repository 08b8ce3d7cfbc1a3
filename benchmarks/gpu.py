"""What there is to know of a GPU: training steps, encoders, and a run on real speech.

`steps` trains at the sizes of LibriSpeech on random speech, stock, gated, and gated with
a teacher taking turns. `encoders` encodes with the dense and with a cut encoder. `run` is
the whole line on FSDD, with ESPnet's own commands and `use_amp`: a dense training, adopt,
a pruning that is killed in the middle and resumed, a cut, and its word error rate. Each
row is kept as soon as it is there, so that a run that is cut short leaves what it has.

Peak memory is what torch's tensors take: of a step, the model with its optimizer and its
teacher, and what the step needs besides, as if the model were alone on the card.
"""

import argparse
import contextlib
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jiwer
import torch
import yaml
from common import (
    DECODE,
    RATE,
    ROOT,
    SIZES,
    arguments,
    keep,
    machine,
    parser,
    read_test_set,
    save_experiment,
    show,
    start,
    take_turns,
)
from cut_speed import TARGETS, encoders
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from step_cost import NAMES, PRECISIONS, make_step

from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.adopt import adopt
from espnet_l0prune.deploy.choice import Choice
from espnet_l0prune.deploy.cut import cut_experiment

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RECIPE = ROOT / "egs/librispeech"
# Samples of a batch on one GPU: LibriSpeech-960's recipe has 35 million on four.
BINS = {"librispeech100": 16_000_000, "librispeech960": 8_750_000}


@dataclass
class Scale:
    """How large everything is.

    Attributes:
        sizes: of `common.SIZES`
        precisions: of `step_cost.PRECISIONS`
        conf: of a training step, options to replace in the recipe's configuration
        seconds: of an utterance of a training step
        utterances: in a training step; None for as many as `BINS` has
        warmup: steps that are not timed, in which the scale of the loss is found
        batches: of the encoders, utterances
        encoded: seconds of such an utterance
        speakers: of FSDD, at most
        train: utterances of each to train on
        test: utterances that are decoded, at most
        training: options of the dense training and of the pruning
        epochs: of the dense training, and of the pruning
    """

    sizes: tuple[str, ...]
    precisions: tuple[str, ...]
    conf: dict
    seconds: float
    utterances: int | None
    warmup: int
    batches: tuple[int, ...]
    encoded: float
    speakers: int
    train: int
    test: int
    training: dict
    epochs: tuple[int, int]


FULL = Scale(
    sizes=tuple(SIZES),
    precisions=tuple(PRECISIONS),
    conf={},
    seconds=15.0,
    utterances=None,
    warmup=3,
    batches=(1, 16),
    encoded=10.0,
    speakers=6,
    train=200,
    test=60,
    training={
        "use_matplotlib": False,
        "num_workers": 4,
        "scheduler_conf": {"warmup_steps": 200},
    },
    epochs=(12, 10),
)
TINY = Scale(
    sizes=tuple(SIZES)[:1],
    precisions=("float32", "bfloat16"),
    conf={"encoder_conf": {"num_blocks": 1}, "decoder_conf": {"num_blocks": 1}},
    seconds=2.0,
    utterances=1,
    warmup=0,
    batches=(1,),
    encoded=1.0,
    speakers=1,
    train=6,
    test=2,
    training={
        "use_matplotlib": False,
        "num_workers": 0,
        "batch_bins": 200_000,
        "encoder_conf": {"num_blocks": 1, "output_size": 16, "linear_units": 32},
        "decoder_conf": {"num_blocks": 1, "linear_units": 32},
    },
    epochs=(1, 4),
)


class Rows:
    """What was found so far, on disk as soon as it is.

    Args:
        options: say where, and how long it may take
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.found = options, []
        self.end = time.monotonic() + 60 * options.minutes

    def add(self, part: str, **columns: object) -> None:
        row = {"part": part, **columns}
        self.found.append(row)
        keep(self.options, self.found)
        print(", ".join(f"{k} {v}" for k, v in row.items()), file=sys.stderr, flush=True)

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()


def allocated() -> int:
    """Bytes of torch's tensors on the GPU."""
    return torch.cuda.memory_allocated() if DEVICE == "cuda" else 0


def needed(run: Callable[[], object]) -> int:
    """Bytes that a call takes on the GPU at most, beside what was there before."""
    if DEVICE != "cuda":
        run()
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def steps(rows: Rows, scale: Scale) -> None:
    """Training steps of each size and precision, in ms and as a ratio to stock ESPnet."""
    for size in scale.sizes:
        if rows.left < 30:
            break
        batch = scale.utterances or int(BINS[size] / RATE / scale.seconds)
        run, own = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            teacher = Path(folder) / "dense"
            dense = arguments(size, **scale.conf)
            save_experiment(teacher, dense, ASRTask.build_model(dense))
            for name in NAMES:
                before = allocated()
                how = teacher, batch, scale.seconds, size, scale.conf
                run[name] = make_step(name, *how)
                run[name](scale.precisions[-1])  # the optimizer has its state now
                own[name] = allocated() - before
        for precision in scale.precisions:
            if rows.left < 30:
                break
            runs = {n: functools.partial(step, precision) for n, step in run.items()}
            what = {"size": size, "precision": precision, "batch": batch}
            try:
                peaks = {name: own[name] + needed(step) for name, step in runs.items()}
                for _ in range(scale.warmup):
                    for step in runs.values():
                        step()
                times = take_turns(runs, rows.options.rounds)
            except torch.cuda.OutOfMemoryError:
                rows.add("steps", **what, model="all", ms="out of memory")
                continue
            for name in NAMES:
                more = {"peak memory (MB)": peaks[name] / 1e6} if peaks[name] else {}
                ms, ratio = 1000 * times[name], times[name] / times[NAMES[0]]
                rows.add("steps", **what, model=name, ms=ms, ratio=ratio, **more)


@torch.no_grad()
def encode(rows: Rows, scale: Scale) -> None:
    """Encoders, dense and with half of the parameters and MACs, in ms and as a ratio."""
    units = {"units": "default", "round_to": 16}
    targets = {"cut": TARGETS["both"]}
    for size in scale.sizes:
        if rows.left < 30:
            break
        found = encoders(size, units, scale.encoded, targets)
        found = {name: encoder.to(DEVICE) for name, encoder in found.items()}
        for precision in scale.precisions:
            dtype = PRECISIONS[precision]
            for batch in scale.batches:
                frames = int(100 * scale.encoded)
                feats = torch.randn(batch, frames, 80, device=DEVICE)
                lengths = torch.full((batch,), frames, device=DEVICE)
                runs = {n: functools.partial(e, feats, lengths) for n, e in found.items()}
                with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
                    peaks = {name: needed(run) for name, run in runs.items()}
                    times = take_turns(runs, rows.options.rounds)
                for name, encoder in found.items():
                    weights = 4 * count_parameters(encoder)
                    memory = {"peak memory (MB)": (weights + peaks[name]) / 1e6}
                    rows.add(
                        "encoders",
                        size=size,
                        precision=precision,
                        batch=batch,
                        encoder=name,
                        ms=1000 * times[name],
                        ratio=times[name] / times["dense"],
                        **(memory if peaks[name] else {}),
                    )


@contextlib.contextmanager
def process(command: list[object], log: Path) -> Iterator[subprocess.Popen]:
    """A command in a process group of its own, which does not outlive the block."""
    binaries = Path(sys.executable).parent
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    # run.sh takes an environment of the repository's unless it is told of another
    env = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(binaries.parent)}
    words = [str(word) for word in command]
    with log.open("ab") as file:
        child = subprocess.Popen(
            words, stdout=file, stderr=file, env=env, start_new_session=True
        )
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def finish(command: list[object], log: Path, rows: Rows) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed, or the time is up
    """
    with process(command, log) as child:
        try:
            code = child.wait(max(rows.left, 1))
        except subprocess.TimeoutExpired:
            raise RuntimeError("the time is up") from None
    if code:
        said = log.read_text("utf-8", "replace").strip().splitlines()[-15:]
        raise RuntimeError("\n".join([f"exit code {code}, {log}", *said]))


def run_until(command: list[object], log: Path, file: Path, rows: Rows) -> None:
    """Run a command, and kill it as soon as a file is there.

    Raises:
        RuntimeError: it ended, or the time is up, and there is no file
    """
    with process(command, log) as child:
        while not file.exists():
            if child.poll() is not None or rows.left < 0:
                raise RuntimeError(f"no {file} after {' '.join(map(str, command))}")
            time.sleep(0.01)


def told(log: Path) -> dict[str, float]:
    """Of the last epoch's training that a log tells of: seconds of an update, and the
    memory that torch holds."""
    text = log.read_text("utf-8", "replace")
    found = {}
    for name, column in (
        ("train_time", "update (s)"),
        ("gpu_max_cached_mem_GB", "cached memory (GB)"),
    ):
        values = re.findall(rf"\[train\][^\[]*?\b{name}=([\d.]+)", text)
        if values and float(values[-1]):
            found[column] = float(values[-1])
    return found


def merged(conf: dict, changes: dict) -> dict:
    return conf | {
        name: {**conf[name], **value} if isinstance(value, dict) else value
        for name, value in changes.items()
    }


def prune_digits(rows: Rows, scale: Scale) -> None:
    """From FSDD's recordings to the word error rates of the dense and the cut model."""
    data = rows.options.data
    if data is None:
        print("run: left out, as no --data was given", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            follow(rows, scale, data.resolve(), Path(folder))
        except RuntimeError as e:
            print(e, file=sys.stderr)
            rows.add("run", stage="stopped", why=str(e).splitlines()[-1])


def follow(rows: Rows, scale: Scale, data: Path, work: Path) -> None:
    """The stages of `run`, each of which adds a row.

    Raises:
        RuntimeError: one failed, or the time is up
    """
    since = time.monotonic()

    def add(stage: str, **columns: object) -> None:
        nonlocal since
        now = time.monotonic()
        rows.add("run", stage=stage, seconds=round(now - since, 1), **columns)
        since = now

    corpus, exp, log = work / "fsdd", work / "exp", work / "log"
    make = [sys.executable, data / "make_corpus.py", corpus, "--train", scale.train]
    finish([*make, "--seed", rows.options.seed], log, rows)
    for speaker in corpus.glob("LibriSpeech/*/[0-9]*"):
        if int(speaker.name) > scale.speakers:
            shutil.rmtree(speaker)
    add("corpus")

    epochs, pruning_epochs = scale.epochs
    conf = yaml.safe_load((RECIPE / "conf/train_small.yaml").read_text("utf-8"))
    conf = merged(conf, {**scale.training, "max_epoch": epochs, "use_amp": True})
    train = work / "train.yaml"
    train.write_text(yaml.safe_dump(conf), "utf-8")
    options = {
        "corpus": corpus,
        "train_sets": "train-digits",
        "valid_sets": "dev-digits",
        "test_sets": "test-digits",
        "datadir": work / "data",
        "expdir": exp,
        "train_config": train,
        "ngpu": torch.cuda.device_count() and 1,
        "seed": rows.options.seed,
        "stop_stage": 4,
    }
    given = [word for name, value in options.items() for word in (f"--{name}", value)]
    finish([RECIPE / "run.sh", *given], log, rows)
    dense = exp / "asr_dense"
    add("dense training", epochs=epochs, **told(dense / "train.log"))

    choice = Choice(target={"params": 0.5, "macs": 0.6}, epochs=(pruning_epochs, 1))
    adopted = adopt(dense, exp / "l0", None, choice)
    add("adopt")

    # the commands are for a shell whose python is the one that trains
    prune = [sys.executable, *shlex.split(adopted.commands[0])[1:]]
    pruned, half = exp / "l0/pruned", pruning_epochs // 2
    run_until(prune, work / "killed.log", pruned / f"{half}epoch.pth", rows)
    add("pruning, killed", epochs=half)
    log = work / "resumed.log"
    finish(prune, log, rows)
    first = re.search(r"(\d+)/\d+epoch started", log.read_text("utf-8", "replace"))
    if first is None or int(first[1]) != half + 1:
        raise RuntimeError(f"the pruning went on with {first}; expected epoch {half + 1}")
    add("pruning, resumed", epochs=pruning_epochs - half, **told(log))

    report = cut_experiment(pruned, exp / "l0/cut")
    before, after = report.encoder_parameters
    add("cut", encoder=f"{before} to {after}", difference=report.difference.float64)

    waves, texts = read_test_set(work / "data/test/test-digits")
    every = max(len(waves) // scale.test, 1)
    waves, texts = waves[::every][: scale.test], texts[::every][: scale.test]
    for name, config, weights in (
        ("cut", exp / "l0/cut/config.yaml", exp / "l0/cut/model.pth"),
        ("dense", dense / "config.yaml", dense / "valid.acc.ave.pth"),
    ):
        if rows.left < 30:
            raise RuntimeError(f"no time is left to decode with the {name} model")
        found = decode(config, weights, waves)
        rate = 100 * jiwer.wer(texts, found)
        add(f"decoding, {name}", utterances=len(waves), **{"WER (%)": rate})


def decode(config: Path, weights: Path, waves: list) -> list[str]:
    """The best texts by ESPnet's beam search."""
    options = yaml.safe_load(DECODE.read_text("utf-8"))
    speech2text = Speech2Text(config, weights, device=DEVICE, **options)
    return [speech2text(wave)[0][0] for wave in waves]


PARTS = {"steps": steps, "encoders": encode, "run": prune_digits}


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    options.add_argument(
        "--data", type=Path, help="folder with FSDD's fsdd.tar and make_corpus.py"
    )
    options.add_argument(
        "--minutes", type=float, default=7.0, help="what takes longer is left out"
    )
    args = options.parse_args(argv)
    start(args)
    if DEVICE == "cpu" and not args.quick:
        raise SystemExit(
            "there is no GPU that this torch can use (torch.cuda.is_available() is "
            "False); expected one, or --quick for a tiny run on the processor"
        )
    scale, args.rounds = (TINY, 1) if args.quick else (FULL, args.rounds)
    rows = Rows(args)
    for part in args.parts:
        PARTS[part](rows, scale)
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    print("; ".join(f"{name}: {value}" for name, value in machine().items()))
    for part in args.parts:
        print(f"\n{part}\n")
        show([row for row in rows.found if row["part"] == part])


if __name__ == "__main__":
    main()

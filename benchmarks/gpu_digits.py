"""The part `run` of `gpu.py`: the whole line on FSDD, with ESPnet's own commands."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jiwer
import torch
import yaml
from common import DECODE, ROOT, read_test_set
from espnet2.bin.asr_inference import Speech2Text
from gpu_scale import DEVICE, Rows, Scale

from espnet_l0prune.deploy.adopt import adopt
from espnet_l0prune.deploy.choice import Choice, with_settings
from espnet_l0prune.deploy.cut import cut_experiment

RECIPE = ROOT / "egs/librispeech"


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
    conf = with_settings(conf, {**scale.training, "max_epoch": epochs, "use_amp": True})
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

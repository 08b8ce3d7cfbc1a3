"""What the benchmarks share: models of real size, fair timing, and what is written."""

import argparse
import datetime
import json
import logging
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import espnet
import jiwer
import numpy as np
import soundfile
import torch
import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump
from torch import nn

from espnet_l0prune.core.files import replace
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.selection import select
from espnet_l0prune.plugin.counting import make_budget, sites_of
from espnet_l0prune.plugin.inputs import FRAMES_A_SECOND

ROOT = Path(__file__).resolve().parent.parent
# what the sizes are called in egs/librispeech/asr1/conf
SIZES = {"librispeech100": "conformer_100", "librispeech960": "conformer"}
QUICK = "quick"  # the size of a quick run: librispeech100 with few blocks
DECODE = ROOT / "egs/librispeech/conf/decode.yaml"
RATE = 16_000  # samples a second
VOCABULARY = 5000  # BPE tokens of the published models


def parser(description: str) -> argparse.ArgumentParser:
    """Options of every benchmark."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write figures here")
    options.add_argument("--quick", action="store_true", help="small, within a minute")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--rounds", type=int, default=7, help="turns of each candidate")
    return options


def pair_parser(description: str) -> argparse.ArgumentParser:
    """Options of a benchmark that decodes with a dense and a pruned model."""
    options = parser(description)
    options.add_argument("--dense", type=Path, help="a dense experiment")
    options.add_argument("--pruned", type=Path, help="a cut, fine-tuned experiment")
    options.add_argument("--data", type=Path, help="folder with wav.scp, text, utt2spk")
    options.add_argument("--decode", type=Path, default=DECODE, help="options of search")
    return options


def start_pair(options: argparse.Namespace) -> dict:
    """Check the options of `pair_parser`; one thread; returns the options of search."""
    start(options)
    if not options.quick and None in (options.dense, options.pruned, options.data):
        raise SystemExit("expected --dense, --pruned and --data, or --quick")
    torch.set_num_threads(1)
    return yaml.safe_load(options.decode.read_text("utf-8"))


def start(options: argparse.Namespace) -> None:
    """Check the options before anything takes time."""
    if options.rounds < 1:
        raise SystemExit(f"--rounds is {options.rounds}; expected 1 or more")
    if options.json is not None and not options.json.parent.is_dir():
        raise SystemExit(f"--json: there is no folder {options.json.parent}")
    logging.disable(logging.WARNING)
    torch.manual_seed(options.seed)


def arguments(size: str, **changes) -> argparse.Namespace:
    """The recipe's dense configuration of a size, as `ASRTask` takes it.

    Args:
        size: of `SIZES`, or `QUICK`
        changes: options to replace; mappings are merged into the configuration's
    """
    name = SIZES["librispeech100" if size == QUICK else size]
    conf = ROOT / f"egs/librispeech/asr1/conf/train_asr_{name}.yaml"
    text = ["--output_dir", "none", "--token_type", "char", "--config", str(conf)]
    args = ASRTask.get_parser().parse_args(text)
    args.token_list = ["<blank>", "<unk>", *map(str, range(VOCABULARY - 3)), "<sos/eos>"]
    if size == QUICK:
        args.encoder_conf["num_blocks"], args.decoder_conf["num_blocks"] = 2, 1
    for name, value in changes.items():
        old = getattr(args, name)
        new = {**old, **value} if isinstance(value, dict) else value
        setattr(args, name, new)
    return args


def features(seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ones, (1, frames, 80), and how many frames, (1,)."""
    feats = torch.randn(1, int(seconds * FRAMES_A_SECOND), 80)
    return feats, torch.tensor([feats.size(1)])


def draw_gates_(model: nn.Module) -> None:
    """Give a model random gates, of which a budget then chooses."""
    for site in sites_of(model):
        for gate in site.gates.values():
            gate.log_alpha.data.normal_()


def decide_gates_(model: nn.Module, targets: Mapping, goal: Goal) -> Plan:
    """Fix a model's gates so that it meets its targets; returns what `cut_` takes."""
    plan = select(make_budget(model, goal), targets)
    decide_(sites_of(model), plan)
    return plan


def save_experiment(folder: Path, args: argparse.Namespace, model) -> None:
    """Write what ESPnet leaves of a training: config.yaml and latest.pth."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml_no_alias_safe_dump(vars(args)), "utf-8")
    torch.save(model.state_dict(), folder / "latest.pth")


def table(file: Path) -> dict[str, str]:
    """A file of Kaldi's: the first word of a line, and the rest."""
    lines = file.read_text("utf-8").splitlines()
    return {key: rest for key, _, rest in (line.partition(" ") for line in lines)}


def read_test_set(data: Path) -> tuple[list[np.ndarray], list[str]]:
    """Waveforms in float32, and texts, of a folder with wav.scp and text."""
    paths, texts = table(data / "wav.scp"), table(data / "text")
    waves = []
    for path in paths.values():
        wave, rate = soundfile.read(path, dtype="float32")
        if rate != RATE:
            raise SystemExit(f"{path} has {rate} samples a second; expected {RATE}")
        waves.append(wave)
    return waves, [texts[utterance] for utterance in paths]


def errors_by_speaker(
    texts: list[str], spoken: list[str], speakers: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Wrong words of each speaker, and words in all, (speakers,)."""
    found = (jiwer.process_words(*pair) for pair in zip(texts, spoken, strict=True))
    errors = [e.substitutions + e.deletions + e.insertions for e in found]
    words = [len(text.split()) for text in texts]
    who = np.unique(speakers, return_inverse=True)[1]
    return np.bincount(who, errors), np.bincount(who, words)


def take_turns(candidates: dict[str, Callable[[], object]], rounds: int) -> dict:
    """Median seconds of each candidate; they alternate, and one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(spent[1:]) for name, spent in times.items()}


def resident(peak: bool = False) -> int:
    """Bytes of memory that this process has, or at most had (Linux)."""
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(key))
    return int(line.split()[1]) * 1024


def write(options: argparse.Namespace, rows: list[dict]) -> None:
    """Print rows as a table, and keep them with where they come from."""
    show(rows)
    keep(options, rows)


def show(rows: list[dict]) -> None:
    """Print rows as a table of Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for row in rows:
        cells = (row.get(name, "") for name in names)
        texts = (f"{c:.4g}" if isinstance(c, float) else f"{c}" for c in cells)
        print("| " + " | ".join(texts) + " |", flush=True)


def keep(options: argparse.Namespace, rows: list[dict]) -> None:
    """Write rows with where they come from, if a file was asked for."""
    if options.json is not None:
        found = {"machine": machine(), "options": vars(options), "rows": rows}
        text = json.dumps(found, indent=1, default=str) + "\n"
        replace(options.json, lambda part: part.write_text(text, "utf-8"))


def machine() -> dict[str, object]:
    """Where and when: processor, versions, commit and date."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    model = next((line for line in lines if line.startswith("model name")), ":")
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = None
    if shutil.which("git"):
        found = subprocess.run(git, capture_output=True, text=True, check=False)
        commit = found.stdout.strip() or None
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model.split(":")[1].strip(),
        "device": cuda,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "espnet": espnet.__version__,
        "commit": commit,
    }

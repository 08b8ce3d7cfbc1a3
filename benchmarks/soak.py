"""Are runs that are killed at random moments the runs that never were?

Small pruning runs of ESPnet's own training command are killed with SIGKILL, at any time
or just when a checkpoint is being written, and resumed until they end. Then the last
checkpoint, with weights, gates, optimizer, multipliers and phase, must equal, bit for
bit, that of a run that nobody disturbed; and no kill may cost more than the epoch that
was under way.
"""

import logging
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from common import parser, start, write

from espnet_l0prune.core.files import is_whole
from espnet_l0prune.plugin.trainer import choose_checkpoint
from espnet_l0prune.testing.runs import CONFIG, final, make_data, run

PHASES = CONFIG["sparsity_scheduler_conf"]
COLUMNS = (
    "runs",
    "kills",
    "half a file left",
    "epochs begun again",
    "lost epochs",
    "other results",
)
VARIANTS = {
    "nupi, cubic": {},
    "lagrangian, linear, in epochs": {
        "sparsity_constraint": "lagrangian",
        "sparsity_constraint_conf": {"multiplier_lr": 20.0, "lambda2": 20.0},
        "sparsity_scheduler": "linear",
        "sparsity_scheduler_conf": {
            **PHASES,
            "in_epochs": True,
            "warmup_steps": 0.5,
            "ramp_steps": 2.5,
            "hold_steps": 1,
        },
    },
    "inequality, staircase, per block": {
        "sparsity_constraint": "inequality",
        "sparsity_constraint_conf": {"multiplier_lr": 50.0},
        "sparsity_scheduler": "staircase",
        "sparsity_scheduler_conf": {**PHASES, "per": "block"},
    },
    "nupi, cubic, alternating, accum_grad": {
        "optim_conf": {**CONFIG["optim_conf"], "order": "alternating"},
        "sparsity_scheduler_conf": {"target": 0.3, **dict.fromkeys(
            ("warmup_steps", "ramp_steps", "hold_steps"), 1
        )},
        "accum_grad": 2,
    },
}  # fmt: skip


def train(data: Path, out: Path, changes: dict, log: Path) -> None:
    """One run in a process of its own, on one thread, all that it says in a file."""
    torch.set_num_threads(1)
    logging.disable(logging.NOTSET)
    logging.root.handlers.clear()  # ESPnet brings its own
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    run(data, out, **changes)


def begin(*args) -> multiprocessing.Process:
    # of a server that has imported ESPnet, and has no threads that a fork would lose
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["espnet_l0prune.testing.runs"])
    process = context.Process(target=train, args=args)
    process.start()
    return process


def disturb(process, out: Path, longest: float, chance: random.Random) -> bool:
    """Kill a run at a random moment, or in the middle of saving; if it has not ended."""
    deadline = time.monotonic() + chance.uniform(0, longest)
    if chance.random() < 0.5:
        process.join(max(deadline - time.monotonic(), 0))
    else:
        file = out / "checkpoint.pth"
        for _ in range(chance.randint(1, CONFIG["max_epoch"])):
            before = modified(file)
            while process.is_alive() and modified(file) == before:
                time.sleep(1e-4)
            time.sleep(chance.uniform(0, 0.01))
    process.kill()
    process.join()
    if process.exitcode not in (0, -9):
        log = out.with_suffix(".log").read_text()
        raise SystemExit(f"{log[-5000:]}\na run failed with exit code {process.exitcode}")
    return process.exitcode == -9


def modified(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def soak(data: Path, out: Path, changes: dict, seconds: float, end: float, chance):
    """One run, killed again and again until it, or the time for it, ends."""
    found, log, checkpoint = Counter(), out.with_suffix(".log"), out / "checkpoint.pth"
    while disturb(begin(data, out, changes, log), out, seconds, chance):
        files = (checkpoint, *out.glob("*[0-9]epoch.pth"))
        found["kills"] += 1
        found["half a file left"] += any(f.exists() and not is_whole(f) for f in files)
        finished = max((int(e) - 1 for e in epochs(log)[-1:]), default=0)
        found["lost epochs"] += max(finished - resumable(checkpoint), 0)
        if time.monotonic() > end:
            begin(data, out, changes, log).join()
            break
    found["epochs begun again"] = len(epochs(log)) - CONFIG["max_epoch"]
    return found


def epochs(log: Path) -> list[str]:
    """Those that were started, in order."""
    return re.findall(r"(\d+)/\d+epoch started", log.read_text())


def resumable(checkpoint: Path) -> int:
    """The epoch after which a run would go on."""
    chosen = choose_checkpoint(checkpoint) if checkpoint.exists() else None
    if chosen is None:
        return 0
    return torch.load(chosen, weights_only=False)["reporter"]["epoch"]


def state(out: Path) -> dict:
    """What the last checkpoint has, but for the reports with their wall times."""
    return {k: v for k, v in final(out).items() if k != "reporter"}


def same(one, two) -> bool:
    """Whether two states are equal, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=60.0, help="end after")
    options.add_argument("--runs", type=int, default=10_000, help="end after so many")
    args = options.parse_args(argv)
    start(args)
    variants = VARIANTS
    if args.quick:
        args.runs, variants = 1, dict(list(VARIANTS.items())[:1])
    chance, end = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    rows = {name: Counter(runs=0) for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_data(folder)
        expected, seconds = {}, {}
        for i, (name, changes) in enumerate(variants.items()):
            out, since = folder / f"reference{i}", time.monotonic()
            process = begin(folder, out, changes, out.with_suffix(".log"))
            process.join()
            if process.exitcode:
                raise SystemExit(out.with_suffix(".log").read_text())
            expected[name], seconds[name] = state(out), time.monotonic() - since
        done = 0
        while done < args.runs and time.monotonic() < end:
            name = list(variants)[done % len(variants)]
            out = folder / f"run{done}"
            found = soak(folder, out, variants[name], 2 * seconds[name], end, chance)
            found["other results"] = int(not same(state(out), expected[name]))
            rows[name] += Counter(runs=1) + found
            done += 1
            print(f"run {done}: {name}: {dict(found)}", file=sys.stderr, flush=True)
            if found["lost epochs"] or found["other results"]:
                shutil.copytree(out, f"soak_failure_{done}", dirs_exist_ok=True)
            shutil.rmtree(out)
            out.with_suffix(".log").unlink()
    counts = ({column: row[column] for column in COLUMNS} for row in rows.values())
    write(args, [{"variant": v, **c} for v, c in zip(rows, counts, strict=True)])


if __name__ == "__main__":
    main()

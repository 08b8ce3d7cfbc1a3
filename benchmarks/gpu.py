"""What there is to know of a GPU: training steps, encoders, and a run on real speech.

`steps` trains at the sizes of LibriSpeech on random speech, stock, gated, and gated with
a teacher taking turns. `encoders` encodes with the dense and with a cut encoder. `run` is
the whole line on FSDD, with ESPnet's own commands and `use_amp`: a dense training, adopt,
a pruning that is killed in the middle and resumed, a cut, and its word error rate. Each
row is kept as soon as it is there, so that a run that is cut short leaves what it has.

Peak memory is what torch's tensors take: of a step, the model with its optimizer and its
teacher, and what the step needs besides, as if the model were alone on the card.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import (
    RATE,
    arguments,
    machine,
    parser,
    save_experiment,
    show,
    start,
    take_turns,
)
from cut_speed import TARGETS, encoders
from espnet2.tasks.asr import ASRTask
from gpu_digits import prune_digits
from gpu_scale import DEVICE, FULL, TINY, Rows, Scale
from step_cost import NAMES, PRECISIONS, make_step

from espnet_l0prune.core.terms import count_parameters

# Samples of a batch on one GPU: LibriSpeech-960's recipe has 35 million on four.
BINS = {"librispeech100": 16_000_000, "librispeech960": 8_750_000}


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
            dense = arguments(size)
            save_experiment(teacher, dense, ASRTask.build_model(dense))
            for name in NAMES:
                before = allocated()
                how = teacher, batch, scale.seconds, size
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

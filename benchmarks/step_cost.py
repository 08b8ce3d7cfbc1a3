"""Time and memory of a training step: stock ESPnet, gated, and gated with a teacher.

The whole recognizer at the size of LibriSpeech-100 on random speech, gates being trained
(phase `ramp`): forward, backward, clipping and the optimizer's update. The models take
turns in one process; memory is that of a process of its own for each, without the
imports.
"""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import (
    QUICK,
    arguments,
    parser,
    resident,
    save_experiment,
    start,
    take_turns,
    write,
)
from espnet2.tasks.asr import ASRTask

NAMES = ("stock", "gated", "gated with teacher")
GATED = {
    "encoder": "l0_conformer",
    "model": "l0_distill",
    "optim": "l0_adamw",
    "sparsity_scheduler": "linear",
    "sparsity_scheduler_conf": {"warmup_steps": 0},
}
SIZE = "librispeech100"
# What autocast computes in; ESPnet's `use_amp` takes bfloat16 where the GPU has it, else
# float16, and scales the loss in both cases
PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}


def make_step(
    name: str,
    teacher: Path,
    batch: int,
    seconds: float,
    size: str = SIZE,
) -> Callable[..., None]:
    """One update of one of the models, ready to be repeated in any of `PRECISIONS`.

    Args:
        name: of `NAMES`
        teacher: a dense experiment of this size
        batch: utterances
        seconds: of audio in each
        size: of `common.SIZES`, or `common.QUICK`
    """
    changes: dict = {"optim": "adamw"} if name == "stock" else dict(GATED)
    if name == "gated with teacher":
        changes["model_conf"] = {
            "teacher_config": str(teacher / "config.yaml"),
            "teacher_model_file": str(teacher / "latest.pth"),
        }
    args = arguments(size, **changes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ASRTask.build_model(args).to(device).train()
    (optimizer,) = ASRTask.build_optimizers(args, model)
    samples, tokens = int(16_000 * seconds), int(3 * seconds)
    data = {
        "speech": torch.randn(batch, samples),
        "speech_lengths": torch.full((batch,), samples),
        "text": torch.randint(2, 4000, (batch, tokens)),
        "text_lengths": torch.full((batch,), tokens),
    }
    data = {key: value.to(device) for key, value in data.items()}
    scaler = torch.amp.GradScaler(device)

    def step(precision: str = "float32") -> None:
        dtype = PRECISIONS[precision]
        with torch.autocast(device, dtype, enabled=dtype is not None):
            loss, _, _ = model(**data)
        if dtype is None:
            loss.backward()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        if dtype is None:
            optimizer.step()
        else:  # which leaves an update out where a gradient is not finite
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()

    return step


def peak_memory(name: str, *work: Any) -> int:
    """Bytes that two steps of `make_step` need; to be called in a fresh process."""
    before = resident()
    step = make_step(name, *work)
    step()
    step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resident(peak=True) - before


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=4, help="utterances")
    options.add_argument("--seconds", type=float, default=10.0, help="of each utterance")
    args = options.parse_args(argv)
    start(args)
    size = SIZE
    if args.quick:
        size, args.rounds, args.batch, args.seconds = QUICK, 2, 1, 2.0
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "dense"
        dense = arguments(size)
        save_experiment(teacher, dense, ASRTask.build_model(dense))
        work = teacher, args.batch, args.seconds, size
        times = take_turns({n: make_step(n, *work) for n in NAMES}, args.rounds)
        memory = {}
        if not args.quick:
            for name in NAMES:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    memory[name] = pool.apply(peak_memory, (name, *work))
    rows = [
        {"model": name, "step (s)": times[name], "ratio": times[name] / times["stock"]}
        | ({"peak memory (MB)": memory[name] / 1e6} if memory else {})
        for name in NAMES
    ]
    write(args, rows)


if __name__ == "__main__":
    main()

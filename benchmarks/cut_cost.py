"""Time and memory of a cut, with its verification: LibriSpeech-960's 116 M parameters.

Random weights; half of the encoder's parameters and of its MACs go. Both figures are of
`cut_experiment` in a process of its own, the imports not counted.
"""

import multiprocessing
import tempfile
import time
from pathlib import Path

from common import (
    QUICK,
    SIZES,
    arguments,
    decide_gates_,
    draw_gates_,
    parser,
    resident,
    save_experiment,
    start,
    write,
)
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.cut import cut_experiment
from espnet_l0prune.plugin.options import make_goal

TARGET = {"params": 0.5, "macs": 0.5}


def make_experiment(folder: Path, size: str) -> int:
    """Write a gated experiment as its last, frozen epoch leaves it.

    Returns its number of parameters.
    """
    args = arguments(
        size,
        encoder="l0_conformer",
        model="l0_distill",
        optim="l0_adamw",
        sparsity_scheduler="linear",
        sparsity_scheduler_conf={"target": TARGET},
    )
    model = ASRTask.build_model(args)
    draw_gates_(model)
    decide_gates_(model, TARGET, make_goal(args))
    save_experiment(folder, args, model)
    return count_parameters(model)


def run_cut(folder: Path) -> dict[str, float]:
    """Cut an experiment; to be called in a fresh process."""
    before, begin = resident(), time.perf_counter()
    report = cut_experiment(folder, folder.with_name("cut"))
    return {
        "seconds": time.perf_counter() - begin,
        "peak memory (MB)": (resident(peak=True) - before) / 1e6,
        "params after (M)": report.model_parameters[1] / 1e6,
        "masked against cut, float64": report.difference.float64,
    }


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=SIZES, default="librispeech960")
    args = options.parse_args(argv)
    start(args)
    size = QUICK if args.quick else args.size
    with tempfile.TemporaryDirectory() as folder:
        experiment = Path(folder) / "pruned"
        parameters = make_experiment(experiment, size)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(run_cut, (experiment,))
    model = parameters * 4 / 1e6
    row = {"size": size, "params (M)": parameters / 1e6, "model (MB)": model, **found}
    row["peak / model"] = row["peak memory (MB)"] / model
    write(args, [row])


if __name__ == "__main__":
    main()

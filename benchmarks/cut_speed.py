"""Encoder real-time factor, dense beside cut, at the sizes of LibriSpeech.

Random weights and random gates: only shapes matter to the time. All encoders of a size
take turns in one process, on the same features.
"""

import copy

import torch
from common import (
    QUICK,
    SIZES,
    arguments,
    decide_gates_,
    draw_gates_,
    features,
    parser,
    start,
    take_turns,
    write,
)
from espnet2.tasks.asr import ASRTask
from torch.profiler import ProfilerActivity, profile

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.bench import count_macs
from espnet_l0prune.plugin.counting import sites_of

TARGETS = {
    "50% params": {"params": 0.5},
    "50% macs": {"macs": 0.5},
    "both": {"params": 0.5, "macs": 0.5},
}


def encoders(
    size: str, units: dict, seconds: float, budgets: dict[str, dict] = TARGETS
) -> dict:
    """The dense encoder of a size, and a cut one for each budget."""
    gated = arguments(size, encoder="l0_conformer", encoder_conf=units)
    model = ASRTask.build_model(gated)
    draw_gates_(model)
    found = {"dense": ASRTask.build_model(arguments(size)).encoder}
    for name, targets in budgets.items():
        trial = copy.deepcopy(model)
        plan = decide_gates_(trial, targets, Goal(seconds=seconds))
        cut_(trial, sites_of(trial), plan)
        found[name] = trial.encoder
    return {name: encoder.eval() for name, encoder in found.items()}


@torch.no_grad()
def measure(size: str, units: dict, seconds: float, rounds: int) -> list[dict]:
    """One row for each encoder of a size and each number of threads."""
    feats, lengths = features(seconds)
    found = encoders(size, units, seconds)
    runs = {name: lambda e=e: e(feats, lengths) for name, e in found.items()}
    macs = {n: count_macs(e, lambda e: e(feats, lengths)) for n, e in found.items()}
    rows, every = [], torch.get_num_threads()
    for threads in dict.fromkeys((1, every)):
        torch.set_num_threads(threads)
        times = take_turns(runs, rounds)
        for name, encoder in found.items():
            ratio, speedup = macs["dense"] / macs[name], times["dense"] / times[name]
            rows.append(
                {
                    "size": size,
                    "encoder": name,
                    "threads": threads,
                    "params (M)": count_parameters(encoder) / 1e6,
                    "MACs (G)": macs[name] / 1e9,
                    "RTF": times[name] / seconds,
                    "MACs ratio": ratio,
                    "speed-up": speedup,
                    "reached": speedup / ratio,
                }
            )
    torch.set_num_threads(every)
    return rows


@torch.no_grad()
def show_profile(size: str, units: dict, seconds: float) -> None:
    """Where dense and cut encoder spend their time, on one thread."""
    feats, lengths = features(seconds)
    torch.set_num_threads(1)
    for name, encoder in encoders(size, units, seconds).items():
        encoder(feats, lengths)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(3):
                encoder(feats, lengths)
        table = found.key_averages().table("self_cpu_time_total", row_limit=12)
        print(f"{size}, {name}\n{table}")


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=SIZES, nargs="+", default=[*SIZES])
    options.add_argument("--units", default="default", help="a word, as in encoder_conf")
    options.add_argument("--round_to", type=int, default=1, help="as in encoder_conf")
    options.add_argument("--seconds", type=float, default=10.0, help="of audio")
    options.add_argument("--profile", action="store_true", help="show operators instead")
    args = options.parse_args(argv)
    start(args)
    units = {"units": args.units, "round_to": args.round_to}
    sizes, rounds = ([QUICK], 3) if args.quick else (args.size, args.rounds)
    if args.profile:
        for size in sizes:
            show_profile(size, units, args.seconds)
        return
    write(args, [r for s in sizes for r in measure(s, units, args.seconds, rounds)])


if __name__ == "__main__":
    main()

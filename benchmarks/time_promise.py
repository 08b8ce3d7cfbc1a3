"""Is the time that a profile promises the time that a cut encoder takes?

An encoder of the recipe's size, with random weights, is profiled as `espnet-l0prune
profile` does. Then its gates are drawn at random, and units close until targets in time
are met; or as many units close as random shares of each module say. What each cut
promises is compared with its measured time, in turns with the dense encoder.
"""

import copy
import dataclasses
import tempfile
from pathlib import Path

import torch
from common import QUICK, SIZES, arguments, draw_gates_, parser, start, write
from espnet2.tasks.asr import ASRTask
from torch import nn

from espnet_l0prune.core.budget import Budget
from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.plan import plan_of
from espnet_l0prune.core.profile import RUNTIMES, Profile
from espnet_l0prune.core.selection import select
from espnet_l0prune.core.steps import quiet
from espnet_l0prune.deploy.profiling import profile_model
from espnet_l0prune.deploy.timer import Conditions, time_encoders
from espnet_l0prune.plugin.building import note_input_
from espnet_l0prune.plugin.counting import sites_of

RATE = 16_000
TARGETS = 0.3, 0.5, 0.7
RANDOM = 2  # structures without a target


def build(size: str) -> nn.Module:
    """An encoder with gates, in a model of ESPnet's that reads features."""
    args = arguments(size, input_size=80, frontend=None, normalize=None)
    args.encoder = "l0_conformer"
    args.encoder_conf = {**args.encoder_conf, "units": "default"}
    args.model, args.model_conf = "l0_distill", {"ctc_weight": 1.0}
    args.decoder = None
    model = ASRTask.build_model(copy.deepcopy(args)).eval()
    note_input_(model, args)
    return model


def random_shares_(model: nn.Module) -> None:
    """Close a random share of each module's units, and keep one at least."""
    for site in sites_of(model):
        for gate in site.gates.values():
            share = torch.rand(()) ** 0.7  # 0.6 on the mean
            kept = torch.rand(gate.log_alpha.shape) < share
            kept[0] = True
            gate.decide_(kept)


def structures(model: nn.Module, profile: Profile) -> dict[str, nn.Module]:
    """Cut models by name, and the dense one."""
    found = {"dense": model}
    for target in TARGETS:
        other = copy.deepcopy(model)
        draw_gates_(other)
        budget = Budget(sites_of(other), [], profile)
        decide_(budget.sites, select(budget, {"time": target}))
        found[f"{target:.0%} less time"] = other
    for number in range(RANDOM):
        other = copy.deepcopy(model)
        random_shares_(other)
        found[f"random {number + 1}"] = other
    return found


def follow(size: str, conditions: Conditions) -> list[dict]:
    """A row for each structure: its promise, and its time."""
    model = build(size)
    said = dataclasses.asdict(conditions)
    profile = profile_model(model, conditions, RATE, quiet)
    models = structures(model, profile)
    promised = {}
    for name, one in models.items():
        sites = sites_of(one)
        budget = Budget(sites, [], profile)
        promised[name] = budget.remaining("time")
        plan = plan_of(sites)
        cut_(one, sites, plan)
    with tempfile.TemporaryDirectory() as folder:
        times, spread = time_encoders(models, conditions, RATE, Path(folder), quiet)
    names = {"size": size, **{k: said[k] for k in ("runtime", "threads", "int8")}}
    return [
        {
            **names,
            "structure": name,
            "promised (ms)": 1000 * promised[name],
            "measured (ms)": 1000 * times[name],
            "promised, of dense": promised[name] / promised["dense"],
            "measured, of dense": times[name] / times["dense"],
            "measured over promised": times[name] / promised[name],
            "spread": max(spread, profile.spread),
        }
        for name in models
    ]


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    options.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=[*RUNTIMES])
    options.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    options.add_argument("--int8", action="store_true", help="with onnxruntime")
    options.add_argument("--seconds", type=float, default=10.0, help="of audio")
    options.add_argument("--minutes", type=float, default=5.0, help="of each measuring")
    args = options.parse_args(argv)
    start(args)
    rows = []
    for size in [QUICK] if args.quick else args.sizes:
        for runtime in args.runtimes:
            for threads in args.threads:
                int8 = args.int8 and runtime != "torch"
                conditions = Conditions(
                    args.seconds, runtime, threads, int8, args.minutes
                )
                rows += follow(size, conditions)
                write(args, rows)


if __name__ == "__main__":
    main()

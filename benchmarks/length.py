"""Time of the encoder against the length of the audio, for each kind of attention.

Relative and absolute positions with softmax, and FAVOR+ (`random_features`), each dense
and with half of its parameters and MACs cut. Random weights and random gates: only shapes
matter to the time. All encoders take turns in one process, on the same features.
"""

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
from torch import nn

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.goal import Goal
from espnet_l0prune.deploy.bench import count_macs
from espnet_l0prune.plugin.counting import sites_of

TARGET = {"params": 0.5, "macs": 0.5}  # MACs for 10 s of audio
ABSOLUTE = {"selfattention_layer_type": "selfattn", "pos_enc_layer_type": "abs_pos"}


def encoders(size: str, random_features: int) -> dict[str, nn.Module]:
    """A dense and a cut encoder of a size, for each kind of attention."""
    linear = {**ABSOLUTE, "random_features": random_features}
    kinds = {"relative": {}, "absolute": ABSOLUTE, "linear": linear}
    found = {}
    for name, conf in kinds.items():
        args = arguments(size, encoder="l0_conformer", encoder_conf=conf)
        model = ASRTask.build_model(args)
        draw_gates_(model)
        plan = decide_gates_(model, TARGET, Goal())
        dense = arguments(size, encoder="l0_conformer", encoder_conf=conf | {"units": []})
        found[name] = ASRTask.build_model(dense).encoder.eval()
        cut_(model, sites_of(model), plan)
        found[f"{name}, cut"] = model.encoder.eval()
    return found


@torch.no_grad()
def measure(found: dict[str, nn.Module], seconds: float, rounds: int) -> list[dict]:
    """One row for each encoder, on one thread."""
    feats, lengths = features(seconds)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = {name: lambda e=e: e(feats, lengths) for name, e in found.items()}
    times = take_turns(runs, rounds)
    torch.set_num_threads(threads)
    return [
        {
            "seconds": seconds,
            "attention": name,
            "MACs (G)": count_macs(encoder, lambda e: e(feats, lengths)) / 1e9,
            "time (s)": times[name],
            "RTF": times[name] / seconds,
            "of relative": times[name] / times["relative"],
        }
        for name, encoder in found.items()
    ]


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--size", choices=SIZES, default="librispeech100")
    options.add_argument("--seconds", type=float, nargs="+", default=[10, 30, 60, 120])
    options.add_argument("--random_features", type=int, default=128)
    args = options.parse_args(argv)
    start(args)
    found = encoders(QUICK if args.quick else args.size, args.random_features)
    lengths, rounds = ([2.0], 1) if args.quick else (args.seconds, args.rounds)
    write(args, [row for s in lengths for row in measure(found, s, rounds)])


if __name__ == "__main__":
    main()

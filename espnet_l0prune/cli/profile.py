"""This is the command `espnet-l0prune profile`."""

import argparse
import json

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import FILE, add_path
from espnet_l0prune.cli.progress import steps
from espnet_l0prune.cli.tables import table_of
from espnet_l0prune.core.profile import RUNTIMES, Profile
from espnet_l0prune.core.ranges import RANGES

RANGE = RANGES["command line"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `profile` to its parser."""
    add_path(parser, "experiment", help="dense; or a cut one, to prune it further")
    add_path(parser, "--out", FILE, required=True, help="file to write")
    parser.add_argument("--checkpoint", help="default: the experiment's average")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help=f"of audio at once, {RANGE['--seconds']}; default: 10",
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="torch",
        help="what runs it; default: torch",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help=f"{RANGE['--threads']}; default: 1"
    )
    parser.add_argument("--int8", action="store_true", help="with onnxruntime")
    parser.add_argument(
        "--minutes",
        type=float,
        default=5.0,
        help="after so many no round begins beyond the fewest, "
        f"{RANGE['--minutes']}; default: 5",
    )
    parser.add_argument("--force", action="store_true", help="replace the output")


def run(args: argparse.Namespace) -> Answer:
    """Measure on this machine how long each place of an encoder computes."""
    import_espnet()
    from espnet_l0prune.core.files import check_file, replace
    from espnet_l0prune.core.ranges import check
    from espnet_l0prune.deploy.profiling import profile_model, summary
    from espnet_l0prune.deploy.timer import Conditions
    from espnet_l0prune.plugin.building import sample_rate_of
    from espnet_l0prune.plugin.experiment import average_of, load_experiment

    numbers = {f"--{name}": getattr(args, name) for name in ("seconds", "threads")}
    check("command line", numbers | {"--minutes": args.minutes})
    how = Conditions(args.seconds, args.runtime, args.threads, args.int8, args.minutes)
    check_file(args.out, args.force)
    with steps("profile") as step:
        checkpoint = args.checkpoint or average_of(args.experiment)
        step(f"loading {args.experiment}")
        model, conf = load_experiment(args.experiment, checkpoint)
        profile = profile_model(model, how, sample_rate_of(conf), step)
    Profile.from_plain(profile.plain(), "what was measured")  # refuses noise
    text = json.dumps(profile.plain(), indent=1)
    replace(args.out, lambda part: part.write_text(text, "utf-8"), args.force)
    rows = summary(profile)
    table = table_of(
        f"the encoder, {how}",
        ("place", "ms", "of all", "ms with half", "ms with none"),
        (
            (
                str(row["place"]),
                f"{row['ms']:.1f}",
                f"{row['share']:.0%}",
                _shown(row["half"]),
                _shown(row["none"]),
            )
            for row in rows
        ),
    )
    return Answer(
        {"out": args.out, "spread": profile.spread, "places": rows},
        [table, f"{args.out}: measured times are certain to {profile.spread:.1%}"],
    )


def _shown(time: float | None) -> str:
    return "" if time is None else f"{time:.1f}"


COMMAND = Command(
    "measure how long each place of an encoder takes on this CPU, for adopt --time",
    "profile exp/asr_conformer --out device.json",
    run,
    add_options,
)

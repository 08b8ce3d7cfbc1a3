"""This is the command `espnet-l0prune profile`."""

import argparse
import json
from typing import Any

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import FILE, add_path
from espnet_l0prune.cli.progress import steps
from espnet_l0prune.cli.tables import table_of
from espnet_l0prune.core.profile import RUNTIMES, Profile, summary
from espnet_l0prune.core.ranges import RANGES

RANGE = RANGES["command line"]
DEFAULTS = {"seconds": 10.0, "threads": 1, "minutes": 5.0}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `profile` to its parser."""
    add_path(parser, "experiment", help="dense; or a cut one, to prune it further")
    output: Any = parser.add_mutually_exclusive_group(required=True)
    add_path(output, "--out", FILE, help="file to write")
    add_path(
        output,
        "--package",
        help="folder to write instead, which measures on a device that has onnxruntime "
        "and no torch",
    )
    add_path(
        parser,
        "--from",
        FILE,
        dest="results",
        metavar="RESULTS",
        help="what such a folder measured, instead of measuring on this machine",
    )
    parser.add_argument("--checkpoint", help="default: the experiment's average")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"of audio at once, {RANGE['--seconds']}; default: {DEFAULTS['seconds']:g}",
    )
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        help="what runs it; default: torch, or onnxruntime with --package",
    )
    parser.add_argument(
        "--threads",
        type=int,
        help=f"{RANGE['--threads']}; default: {DEFAULTS['threads']}",
    )
    parser.add_argument(
        "--int8", action="store_true", default=None, help="with onnxruntime"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="after so many no round begins beyond the fewest, "
        f"{RANGE['--minutes']}; default: {DEFAULTS['minutes']:g}",
    )
    parser.add_argument("--force", action="store_true", help="replace the output")


def run(args: argparse.Namespace) -> Answer:
    """Measure how long each place of an encoder computes, here or on another device."""
    import_espnet()
    from espnet_l0prune.core.files import check_file, replace
    from espnet_l0prune.deploy.package import check_package, profile_from, write_package
    from espnet_l0prune.deploy.profiling import profile_model
    from espnet_l0prune.deploy.timer import Conditions
    from espnet_l0prune.plugin.building import sample_rate_of
    from espnet_l0prune.plugin.experiment import average_of, load_experiment

    how = Conditions(**_conditions(args))
    if args.package:
        check_package(args.package, args.force)
    else:
        check_file(args.out, args.force)
    with steps("profile") as step:
        checkpoint = args.checkpoint or average_of(args.experiment)
        step(f"loading {args.experiment}")
        model, conf = load_experiment(args.experiment, checkpoint)
        rate = sample_rate_of(conf)
        if args.package:
            write_package(model, how, rate, args.package, step, args.force)
            return _packed(args, how)
        if args.results:
            profile = profile_from(model, args.results)
        else:
            profile = profile_model(model, how, rate, step)
    measured = args.results or "what was measured"
    Profile.from_plain(profile.plain(), str(measured))  # refuses noise
    text = json.dumps(profile.plain(), indent=1)
    replace(args.out, lambda part: part.write_text(text, "utf-8"), args.force)
    how = Conditions(profile.seconds, profile.runtime, profile.threads, profile.int8)
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
    told = f"{args.out}: measured times are certain to {profile.spread:.1%}"
    found = {"out": args.out, "spread": profile.spread, "machine": profile.machine}
    return Answer(found | {"places": rows}, [table, f"{told}, on {profile.machine}"])


def _conditions(args: argparse.Namespace) -> dict[str, Any]:
    """Return the conditions that the options ask for.

    Raises:
        ValueError: a number out of its range, or options that exclude each other
    """
    from espnet_l0prune.core.ranges import check

    given = {name: getattr(args, name) for name in (*DEFAULTS, "runtime", "int8")}
    given = {name: value for name, value in given.items() if value is not None}
    if args.results and args.package:
        raise ValueError("--from is set with --package; expected --from with --out")
    if args.results and given:
        name = next(iter(given))
        raise ValueError(
            f"--{name} is set with --from; expected it where the package was written, "
            "or, for --threads and --minutes, where it was measured"
        )
    if args.package:
        runtime = given.setdefault("runtime", "onnxruntime")
        if runtime != "onnxruntime":
            raise ValueError(
                f"--runtime is {runtime} with --package; expected onnxruntime, which is "
                "all that a package needs"
            )
    conditions = DEFAULTS | given
    check("command line", {f"--{name}": conditions[name] for name in DEFAULTS})
    return conditions


def _packed(args: argparse.Namespace, how: object) -> Answer:
    """Return what was written into a package, and what to do with it."""
    package, same = args.package, f"profile {args.experiment}"
    if args.checkpoint:
        same += f" --checkpoint {args.checkpoint}"
    files = [*package.iterdir()]
    size = sum(file.stat().st_size for file in files)
    graphs = sum(file.suffix == ".onnx" for file in files)
    lines = [
        f"{package}: {graphs} graphs, {size / 1e6:,.1f} MB, for {how}",
        "Copy it to the device, and there, with onnxruntime and numpy:",
        f"  python3 {package.name}/measure.py",
        f"Bring back its {package.name}/results.json, and here:",
        f"  espnet-l0prune {same} --from results.json --out device.json",
    ]
    return Answer({"package": package, "graphs": graphs, "bytes": size}, lines)


def _shown(time: float | None) -> str:
    return "" if time is None else f"{time:.1f}"


COMMAND = Command(
    "measure how long each place of an encoder takes on a CPU, for adopt --time",
    "profile exp/asr_conformer --out device.json",
    run,
    add_options,
)

"""This is the command `espnet-l0prune probe`."""

import argparse
import functools
import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import FILE, add_path, add_what_is_pruned, units_of
from espnet_l0prune.cli.progress import steps
from espnet_l0prune.cli.tables import short, table_of
from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.ranges import RANGES

if TYPE_CHECKING:
    from espnet_l0prune.deploy.probe import Probe
RANGE, UTTERANCES = RANGES["command line"], 8


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `probe` to its parser."""
    add_path(
        parser, "source", FILE, help="the experiment's folder, or a zip of the model zoo"
    )
    add_path(parser, "--out", help="folder to write probe.json and pictures into")
    parser.add_argument("--checkpoint", help="default: the experiment's average")
    add_path(
        parser,
        "--data",
        help="folder with files named as those of the training's data, such as "
        "dump/raw/dev; default: the training's data",
    )
    parser.add_argument(
        "--utterances",
        type=int,
        default=UTTERANCES,
        help=f"how many of them, {RANGE['--utterances']}; default: {UTTERANCES}",
    )
    add_path(
        parser,
        "--profile",
        FILE,
        help="what `profile` wrote, to set what places are worth against their time; "
        "MACs are counted for its audio",
    )
    add_what_is_pruned(parser)


def run(args: argparse.Namespace) -> Answer:
    """Say what each part of an experiment is worth and costs, before it is pruned."""
    import_espnet()
    from espnet_l0prune.core.files import claimed, replace
    from espnet_l0prune.deploy.choice import Choice
    from espnet_l0prune.deploy.probe import probe_experiment
    from espnet_l0prune.report.probed import pictures

    choice = Choice(scope=args.scope, units=units_of(args), profile=args.profile)
    what = args.source, args.checkpoint, choice, args.utterances, args.data
    with claimed(args.out) if args.out else nullcontext():
        with steps("probe") as step:
            probe = probe_experiment(*what, step)
        if args.out:
            text = json.dumps(probe.plain(), indent=1)
            replace(args.out / "probe.json", lambda part: part.write_text(text, "utf-8"))
            for picture in pictures(probe):
                save = functools.partial(picture.figure.savefig, format="png", dpi=150)
                replace(args.out / f"{picture.name}.png", save)
    reach = ", ".join(f"{v:.1%} of the {k}" for k, v in probe.reachable.items())
    parameters = f"{probe.totals['params']:,.0f} parameters"
    head = f"{probe.scope}: {parameters}; units reach {reach}"
    return Answer(probe.plain(), [head, *_tables(probe), *_verdict(probe)])


def _tables(probe: "Probe") -> Iterator[object]:
    costs = [*probe.reachable]
    labels = [COSTS[cost].label for cost in costs]
    yield table_of(
        "closed one at a time: the least KL divergence for what it saves comes first",
        ("place", "units", *labels, "KL, half", "KL", "loss"),
        (
            (
                f"{short(worth.place)} {worth.kind or '(whole block)'}",
                f"{worth.whole.units}/{worth.size}",
                *(f"{worth.whole.saved[cost]:.1%}" for cost in costs),
                "" if worth.half is None else _digits(worth.half.harm.kl),
                _digits(worth.whole.harm.kl),
                f"{worth.whole.harm.loss - probe.loss:+.3g}",
            )
            for worth in probe.worths
        ),
    )
    yield table_of(
        "the cheapest closed together, before any training",
        ("target", *labels, "KL", "loss"),
        (
            (
                f"{point.target:.0%} of the {COSTS[cost].label}",
                *(f"{point.closed.saved[c]:.1%}" for c in costs),
                _digits(point.closed.harm.kl),
                _digits(point.closed.harm.loss),
            )
            for cost, points in probe.curves.items()
            for point in points
        ),
    )


def _verdict(probe: "Probe") -> Iterator[str]:
    cheap = {cost: probe.cheap(cost) for cost in probe.curves}
    found = [
        f"{p.target:.0%} of the {cost}" for cost, p in cheap.items() if p is not None
    ]
    yield (
        f"The loss is {probe.loss:.3g} on {probe.utterances} utterances, and the KL "
        "divergence is in nats for each. With the cheapest units closed and nothing "
        "trained, the loss rises by a tenth at most up to "
        f"{' or '.join(found) or 'none of these targets'}."
    )
    yield (
        "This is before any training, which recovers much of what is lost: take it for a "
        "floor of what training reaches, and for no forecast."
    )


def _digits(x: float) -> str:
    """Return three digits, or all of a large number, without an exponent."""
    return f"{x:.3g}" if abs(x) < 1000 else f"{x:,.0f}"


COMMAND = Command(
    "say before any training what each part is worth, what it costs, and what is cheap",
    "probe exp/asr_conformer --out exp/asr_probe",
    run,
    add_options,
)

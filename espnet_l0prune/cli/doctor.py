"""This is the command `espnet-l0prune doctor`."""

import argparse
import dataclasses

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.progress import busy


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `doctor` to its parser."""
    parser.add_argument(
        "--fix",
        action="store_true",
        help="move torchaudio's native libraries aside if they cannot load",
    )


def run(args: argparse.Namespace) -> Answer:
    """Say what is wrong with the installation; `--fix` mends torchaudio."""
    from espnet_l0prune.doctor import examine, mend_torchaudio

    moved = mend_torchaudio() if args.fix else []
    lines = [
        f"moved aside, since it cannot load beside this torch: {path}" for path in moved
    ]
    if args.fix and not moved:
        lines.append("no library was moved: torchaudio loads, or would not without them")
    with busy("looking"):
        checks = examine()
    for check in checks:
        verdict = "BAD" if check.remedy else "ok "
        lines.append(f"{verdict} {check.name}: {check.found}")
        if check.remedy:
            lines.append(f"    -> {check.remedy}")
    return Answer(
        {"checks": [dataclasses.asdict(check) for check in checks], "moved": moved},
        lines,
        int(any(check.remedy for check in checks)),
    )


COMMAND = Command(
    "check the installation",
    "doctor",
    run,
    add_options,
)

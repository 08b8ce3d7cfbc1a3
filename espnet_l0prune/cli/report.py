"""This is the command `espnet-l0prune report`."""

import argparse
import dataclasses
from pathlib import Path

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import add_path
from espnet_l0prune.cli.progress import busy


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report` to its parser."""
    add_path(parser, "experiments", nargs="+", help="folders, or folders of experiments")
    add_path(parser, "--out", default=Path("report"), help="folder for index.html")


def run(args: argparse.Namespace) -> Answer:
    """Write a page of pictures and tables."""
    import_espnet()
    from espnet_l0prune.report.page import write_report

    with busy("reading and drawing") as track:
        report = write_report(args.experiments, args.out, track)
    missing = [f"missing: {what}" for what in report.missing]
    written = f"{report.page}, and {len(report.pictures)} pictures beside it"
    return Answer(dataclasses.asdict(report), [*report.headline, *missing, written])


COMMAND = Command(
    "write a page of pictures and tables on experiments, also while they train",
    "report exp/asr_pruned exp/asr_finetuned --out report",
    run,
    add_options,
)

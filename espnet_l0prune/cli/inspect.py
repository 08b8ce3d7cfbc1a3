"""This is the command `espnet-l0prune inspect`."""

import argparse
import dataclasses

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import add_path
from espnet_l0prune.cli.progress import busy
from espnet_l0prune.cli.tables import short


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `inspect` to its parser."""
    add_path(parser, "experiment", help="folder with config.yaml")
    parser.add_argument("--checkpoint", help="default: latest.pth, or model.pth of a cut")


def run(args: argparse.Namespace) -> Answer:
    """Count an experiment, module by module."""
    import_espnet()
    from rich import box
    from rich.table import Table

    from espnet_l0prune.core.goal import NETWORKS
    from espnet_l0prune.deploy.inspect import inspect_experiment
    from espnet_l0prune.plugin.experiment import last_of

    checkpoint = args.checkpoint or last_of(args.experiment)
    with busy(f"counting {args.experiment}"):
        inspection = inspect_experiment(args.experiment, checkpoint)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # it fits 80 columns
    table.add_column("module", no_wrap=True)
    table.add_column("units left")
    for column in ("parameters", "MACs (M)"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in inspection.rows:
        if not row.amounts["params"] and all(
            left == size for size, left in row.units.values()
        ):
            continue  # this stream keeps its whole width
        units = ", ".join(
            f"{kind} {left}" + (f"/{size}" if left != size else "")
            for kind, (size, left) in row.units.items()
            if (size, left) != (1, 1)
        )
        table.add_row(
            short(row.module),
            units,
            f"{row.amounts['params']:,} {row.shares['params']:6.1%}",
            f"{row.amounts['macs'] / 1e6:,.1f} {row.shares['macs']:6.1%}",
        )
    lines = [
        f"{part}: {inspection.amounts['params'][part]:,} parameters, "
        f"{inspection.amounts['macs'][part] / 1e6:,.1f} M "
        f"MACs for {inspection.seconds:g} s of audio and {inspection.tokens} tokens"
        for part in (*NETWORKS, "model")
        if inspection.amounts["params"][part]
    ]
    lines += [
        f"sparsity of the {inspection.scope} in {cost}: expected {expected:.4f}, actual "
        f"{inspection.actual_sparsity[cost]:.4f}, reachable "
        f"{inspection.reachable_sparsity[cost]:.4f}"
        for cost, expected in inspection.expected_sparsity.items()
    ]
    title = f"{args.experiment}/{checkpoint}"
    return Answer(dataclasses.asdict(inspection), [title, table, *lines])


COMMAND = Command(
    "print what is left of every module",
    "inspect exp/asr_pruned",
    run,
    add_options,
)

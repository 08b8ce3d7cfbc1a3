"""This is the command `espnet-l0prune verify`."""

import argparse
import dataclasses

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import add_path
from espnet_l0prune.cli.progress import busy


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `verify` to its parser."""
    add_path(parser, "experiment", help="the pruned one")
    add_path(parser, "cut", help="what was cut from it, before fine-tuning")
    parser.add_argument("--checkpoint", help="of the experiment; default: the last one")


def run(args: argparse.Namespace) -> Answer:
    """Compare a cut experiment with the one that it was cut from."""
    import_espnet()
    from espnet_l0prune.deploy.verify import (
        difference_of,
        outputs,
        require_equal,
        tolerance_of,
    )
    from espnet_l0prune.plugin.counting import sites_of
    from espnet_l0prune.plugin.experiment import last_of, load_experiment

    with busy("comparing"):
        masked, _ = load_experiment(
            args.experiment, args.checkpoint or last_of(args.experiment)
        )
        small, _ = load_experiment(args.cut, last_of(args.cut))
        difference = difference_of(outputs(masked), outputs(small))
    remedy = (
        "Compare checkpoints of the same run: the cut model before fine-tuning, and cut "
        "without --reconstruct, with the gated one that it was cut from."
    )
    require_equal(difference, tolerance_of(sites_of(masked)), remedy)
    return Answer(dataclasses.asdict(difference), [f"difference: {difference}"])


COMMAND = Command(
    "check that a cut model computes what the pruned one does",
    "verify exp/asr_pruned exp/asr_cut",
    run,
    add_options,
)

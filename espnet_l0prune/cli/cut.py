"""This is the command `espnet-l0prune cut`."""

import argparse
import dataclasses

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import add_path
from espnet_l0prune.cli.progress import steps


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cut` to its parser."""
    add_path(parser, "experiment", help="pruned, to the end unless there is a --plan")
    add_path(parser, "--out", required=True, help="folder to write")
    parser.add_argument("--checkpoint", help="default: the last one, such as latest.pth")
    add_path(
        parser,
        "--plan",
        help="plan.json that says which units stay; default: those with open gates",
    )
    parser.add_argument(
        "--reconstruct",
        type=int,
        metavar="N",
        help="fit what is left to the teacher, layer by layer, in closed form, on N "
        "utterances of the training data (64, say)",
    )
    parser.add_argument("--force", action="store_true", help="replace the output folder")


def run(args: argparse.Namespace) -> Answer:
    """Cut the closed units out of a pruned experiment, and compare the two."""
    import_espnet()
    from espnet_l0prune.deploy.cut import cut_experiment

    with steps("cut") as step:
        report = cut_experiment(
            args.experiment,
            args.out,
            args.checkpoint,
            args.plan,
            args.force,
            args.reconstruct,
            step,
        )
    before, after = report.model_parameters
    encoder_before, encoder_after = report.encoder_parameters
    lines = [
        f"{args.out}: encoder {encoder_before:,} -> {encoder_after:,} parameters, model "
        f"{before:,} -> {after:,}"
    ]
    for cost, sparsity in report.sparsity.items():
        target = report.target.get(cost, "none")
        lines.append(
            f"sparsity of the {report.scope} in {cost}: {sparsity:.4f} (target {target})"
        )
    if report.promised_time is not None:
        slow, fast = (1000 * seconds for seconds in report.promised_time)
        lines.append(f"promised time of the encoder: {slow:.1f} -> {fast:.1f} ms")
    lines.append(f"masked and cut differ by {report.difference}")
    if report.reconstruction is not None:
        lines.append(f"then {report.reconstruction}")
    return Answer({"out": args.out, **dataclasses.asdict(report)}, lines)


COMMAND = Command(
    "cut the closed units out of a pruned experiment",
    "cut exp/asr_pruned --out exp/asr_cut",
    run,
    add_options,
)

"""This is the command `espnet-l0prune card`."""

import argparse

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import FILE, about_of, add_card_options, add_path
from espnet_l0prune.cli.progress import busy


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `card` to its parser."""
    add_path(parser, "experiment", help="cut or fine-tuned")
    add_path(parser, "--out", FILE, required=True, help="Markdown to write")
    add_card_options(parser)


def run(args: argparse.Namespace) -> Answer:
    """Write a model's card."""
    import_espnet()
    from espnet_l0prune.core.files import check_file, replace
    from espnet_l0prune.deploy.card import card_of
    from espnet_l0prune.plugin.experiment import average_of

    check_file(args.out, args.force)
    checkpoint = args.checkpoint or average_of(args.experiment)
    with busy(f"counting {args.experiment}"):
        text = card_of(
            args.experiment, checkpoint, about_of(args, args.experiment.resolve().name)
        )
    replace(args.out, lambda part: part.write_text(text, "utf-8"), args.force)
    return Answer({"out": args.out}, [f"{args.out}: {len(text.splitlines())} lines"])


COMMAND = Command(
    "write the model card alone, as export does",
    "card exp/asr_finetuned --out README.md --name me/model",
    run,
    add_options,
)

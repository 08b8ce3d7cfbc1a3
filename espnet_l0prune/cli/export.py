"""This is the command `espnet-l0prune export`."""

import argparse

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import FILE, about_of, add_card_options, add_path
from espnet_l0prune.cli.progress import steps
from espnet_l0prune.deploy.exports import FORMS

SHERPA = "sherpa"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export` to its parser."""
    texts = {name: form.text for name, form in FORMS.items()}
    texts[SHERPA] = "a folder from which sherpa-onnx decodes, on phones and servers"
    parser.add_argument(
        "form",
        choices=tuple(texts),
        help="; ".join(f"{name}: {text}" for name, text in texts.items()),
    )
    add_path(parser, "experiment", help="without gates")
    add_path(parser, "--out", FILE, required=True, help="the zip, or sherpa's folder")
    add_card_options(parser)
    parser.add_argument(
        "--int8", action="store_true", help="quantize onnx or sherpa dynamically"
    )


def run(args: argparse.Namespace) -> Answer:
    """Pack a model for the zoo, or write it for another runtime."""
    import_espnet()
    from espnet_l0prune.plugin.experiment import average_of

    checkpoint = args.checkpoint or average_of(args.experiment)
    return (_sherpa if args.form == SHERPA else _zip)(args, checkpoint)


def _zip(args: argparse.Namespace, checkpoint: str) -> Answer:
    from espnet_l0prune.deploy.card import SOURCE
    from espnet_l0prune.deploy.export import export as export_model

    about = about_of(args, args.out.stem)
    options = (args.form, about, args.force, args.int8)
    with steps("export") as step:
        done = export_model(args.experiment, checkpoint, args.out, *options, step)
    size = args.out.stat().st_size
    lines = [f"{args.out}: {size / 1e6:,.1f} MB, {done.verified}"]
    if done.packages:
        needed = f"ESPnet needs more to load it: pip install{done.packages}."
        lines.append(f"{needed} {SOURCE}")
    return Answer({"out": args.out, "bytes": size, "verified": done.verified}, lines)


def _sherpa(args: argparse.Namespace, checkpoint: str) -> Answer:
    from espnet_l0prune.deploy.sherpa import export_sherpa

    options = (about_of(args, args.out.name), args.force, args.int8)
    with steps("export") as step:
        done = export_sherpa(args.experiment, checkpoint, args.out, *options, step)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    lines = [
        f"{args.out}: {size / 1e6:,.1f} MB, {done.verified}",
        f"sherpa-onnx loads it by OfflineRecognizer.{done.route}; see its README.md. "
        f"{done.differs}",
    ]
    return Answer({"out": args.out, "bytes": size, **vars(done)}, lines)


COMMAND = Command(
    "pack a cut or fine-tuned model for the model zoo, or write it for another runtime",
    "export plugin exp/asr_finetuned --out model.zip --name me/model",
    run,
    add_options,
)

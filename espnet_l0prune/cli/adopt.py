"""This is the command `espnet-l0prune adopt`."""

import argparse
import dataclasses
import functools
from typing import Any

import yaml

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import FILE, add_path, add_what_is_pruned, units_of
from espnet_l0prune.cli.progress import steps
from espnet_l0prune.core.costs import COSTS
from espnet_l0prune.core.ranges import RANGES, SHARE

RANGE, DEFAULT = RANGES["command line"], {"params": 0.5}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `adopt` to its parser."""
    add_path(
        parser, "source", FILE, help="the experiment's folder, or a zip of the model zoo"
    )
    add_path(parser, "--out", required=True, help="folder to write")
    parser.add_argument("--checkpoint", help="default: the experiment's average")
    for name, cost in COSTS.items():
        text = f"sparsity in {cost.label}, {SHARE}"
        default = f"; {DEFAULT[name]:g} if no other is given" if name in DEFAULT else ""
        parser.add_argument(f"--{name}", type=float, help=text + default)
    parser.add_argument(
        "--milestones",
        type=float,
        nargs="+",
        default=[],
        help="sparsities on the way, at each of which a network is written, cut and "
        f"fine-tuned, too: {RANGE['--milestones']}, below the (largest) target",
    )
    add_path(
        parser,
        "--profile",
        FILE,
        help="what `profile` wrote, which --time needs; MACs are counted for its audio",
    )
    add_what_is_pruned(parser)
    for name, what in (("--epochs", "pruning"), ("--finetune_epochs", "fine-tuning")):
        parser.add_argument(name, type=int, help=f"of the {what}, {RANGE[name]}")
    for name, file in (("--set", "prune.yaml"), ("--set_finetune", "finetune.yaml")):
        parser.add_argument(
            name,
            action="append",
            default=[],
            type=setting,
            metavar="KEY=VALUE",
            help=f"an option of {file}, such as optim_conf.lr=0.001; may come again",
        )
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--no_data",
        action="store_true",
        help="leave the training data out, for recipes that name it (asr.sh)",
    )
    data.add_argument(
        "--rehearse",
        action="store_true",
        help="prune in some 50 updates on your data first, to see that the whole pruning "
        "will reach its target, and how long it and the fine-tuning will take",
    )


def setting(text: str) -> dict[str, Any]:
    """Return what KEY=VALUE says as a configuration; dots lead into mappings.

    Raises:
        argparse.ArgumentTypeError: a text of another form, or a value that is not YAML
    """
    key, equals, value = text.partition("=")
    names = key.split(".")
    try:
        conf = yaml.safe_load(value)
    except yaml.YAMLError:
        equals = ""
    if not equals or not all(names):
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of KEY=VALUE; expected optim_conf.lr=0.001, say"
        )
    for name in reversed(names):
        conf = {name: conf}
    return conf


def run(args: argparse.Namespace) -> Answer:
    """Write what prunes and fine-tunes a dense experiment."""
    import_espnet()
    from espnet_l0prune.deploy.adopt import adopt as adopt_experiment
    from espnet_l0prune.deploy.choice import Choice, with_settings
    from espnet_l0prune.deploy.rehearsal import rehearse

    target = {cost: getattr(args, cost) for cost in COSTS}
    target = {cost: value for cost, value in target.items() if value is not None}
    choice = Choice(
        target=target or DEFAULT,
        scope=args.scope,
        units=units_of(args),
        epochs=(args.epochs, args.finetune_epochs),
        profile=args.profile,
        data=not args.no_data,
        settings=functools.reduce(with_settings, args.set, {}),
        milestones=args.milestones,
        finetune_settings=functools.reduce(with_settings, args.set_finetune, {}),
    )
    with steps("adopt") as step:
        adopted = adopt_experiment(args.source, args.out, args.checkpoint, choice, step)
        rehearsal = rehearse(adopted, step) if args.rehearse else None
    data, told, code = dataclasses.asdict(adopted), [], 0
    if rehearsal is not None:
        data |= {"rehearsal": dataclasses.asdict(rehearsal)}
        told, code = rehearsal.lines(), int(rehearsal.problem is not None)
    reach = ", ".join(f"{v:.1%} of the {k}" for k, v in adopted.reachable.items())
    return Answer(
        data,
        [
            f"{args.scope}: {adopted.parameters:,} parameters; units reach {reach}",
            *adopted.notes,
            *told,
            "Next:",
            *(f"  {line}" for line in adopted.commands),
            *([f"All of these: sh {adopted.script}"] if adopted.script else []),
        ],
        code,
    )


COMMAND = Command(
    "write what prunes and fine-tunes an experiment that was trained dense",
    "adopt exp/asr_conformer --out exp/asr_l0 --params 0.5 --macs 0.6",
    run,
    add_options,
)

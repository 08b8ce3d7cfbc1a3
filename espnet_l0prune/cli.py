"""Commands of espnet-l0prune: parse, call, print.

Exit codes: 0 done; 1 something that the user can mend, said in one message;
2 a command line that is not understood.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import sys
import sysconfig
import warnings
from pathlib import Path

from espnet_l0prune import __version__


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="espnet-l0prune",
        description="Structured pruning of ESPnet's recognizers.",
        epilog="Exit codes: 0 done; 1 something to mend, with a message; 2 bad usage.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="show the whole stack trace")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run, text: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, epilog=f"example: {example}"
        )
        sub.set_defaults(run=run)
        return sub

    sub = command("doctor", doctor, "check the installation", "espnet-l0prune doctor")
    sub.add_argument(
        "--fix",
        action="store_true",
        help="move torchaudio's native libraries aside if they cannot load",
    )
    sub = command(
        "inspect",
        inspect,
        "print what is left of every module",
        "espnet-l0prune inspect exp/asr_pruned",
    )
    sub.add_argument("experiment", type=Path, help="folder with config.yaml")
    sub.add_argument("--checkpoint", help="default: latest.pth, or model.pth of a cut")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = command(
        "adopt",
        adopt,
        "write what prunes and fine-tunes an experiment that was trained dense",
        "espnet-l0prune adopt exp/asr_conformer --out exp/asr_l0 --params 0.5 --macs 0.6",
    )
    sub.add_argument(
        "source", type=Path, help="the experiment's folder, or a zip of the model zoo"
    )
    sub.add_argument("--out", type=Path, required=True, help="folder to write")
    sub.add_argument("--checkpoint", help="default: the experiment's average")
    sub.add_argument(
        "--params",
        type=float,
        help="sparsity in parameters; 0.5 if --macs is not given",
    )
    sub.add_argument("--macs", type=float, help="sparsity in multiply-accumulates")
    sub.add_argument(
        "--scope", choices=("encoder", "model"), default="encoder", help="what is pruned"
    )
    sub.add_argument(
        "--units", default="default", help="default, paper, all, or kinds with commas"
    )
    sub.add_argument("--epochs", type=int, help="of the pruning")
    sub.add_argument("--finetune_epochs", type=int, help="of the fine-tuning")
    sub.add_argument(
        "--no_data",
        action="store_true",
        help="leave the training data out, for recipes that name it (asr.sh)",
    )
    sub = command(
        "cut",
        cut,
        "cut the closed units out of a pruned experiment",
        "espnet-l0prune cut exp/asr_pruned --out exp/asr_cut",
    )
    sub.add_argument("experiment", type=Path, help="pruned to the end: gates frozen")
    sub.add_argument("--out", type=Path, required=True, help="folder to write")
    sub.add_argument("--checkpoint", default="latest.pth")
    sub.add_argument("--force", action="store_true", help="replace the output folder")
    sub = command(
        "verify",
        verify,
        "check that a cut model computes what the pruned one does",
        "espnet-l0prune verify exp/asr_pruned exp/asr_cut",
    )
    sub.add_argument("experiment", type=Path)
    sub.add_argument("cut", type=Path)
    sub.add_argument("--checkpoint", default="latest.pth", help="of the experiment")
    sub = command(
        "export",
        export,
        "pack a cut or fine-tuned model for the model zoo, with a model card",
        "espnet-l0prune export plugin exp/asr_finetuned --out model.zip --name me/model",
    )
    sub.add_argument(
        "form",
        choices=("plugin", "stock", "onnx"),
        help="plugin: small, needs this package; stock: plain ESPnet loads it, filled up "
        "with zeros where its configuration cannot say what was cut; onnx: onnxruntime "
        "runs encoder and decoder, with ESPnet and this package or without them",
    )
    sub.add_argument("experiment", type=Path)
    sub.add_argument("--out", type=Path, required=True, help="the zip to write")
    sub.add_argument("--checkpoint", help="default: the experiment's average")
    sub.add_argument("--name", help="of the model in the zoo (default: the zip's name)")
    sub.add_argument("--license", default="cc-by-4.0", help="as the zoo writes it")
    sub.add_argument("--language", default="noinfo", help="as the zoo writes it")
    sub.add_argument("--datasets", nargs="*", default=[], help="that it was trained on")
    sub.add_argument("--int8", action="store_true", help="quantize onnx dynamically")
    sub.add_argument("--force", action="store_true", help="replace the zip")
    sub = command(
        "report",
        report,
        "write a page of pictures and tables on experiments, also while they train",
        "espnet-l0prune report exp/asr_pruned exp/asr_finetuned --out report",
    )
    sub.add_argument(
        "experiments", type=Path, nargs="+", help="folders, or folders of experiments"
    )
    sub.add_argument(
        "--out", type=Path, default=Path("report"), help="folder for index.html"
    )
    command(
        "enable",
        enable,
        "register with ESPnet at Python's start (for editable installs)",
        "espnet-l0prune enable",
    )
    command("disable", disable, "undo enable", "espnet-l0prune disable")
    return parser


def _import_espnet() -> None:
    """Import ESPnet without what it and its dependencies print, and torch's warnings
    about ESPnet."""
    warnings.simplefilter("ignore", FutureWarning)
    noise = io.StringIO()
    with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
        import espnet2.tasks.asr  # noqa: F401


def doctor(args: argparse.Namespace) -> int:
    from espnet_l0prune.doctor import examine, mend_torchaudio

    if args.fix:
        moved = mend_torchaudio()
        for path in moved:
            print(f"moved aside, since it cannot load beside this torch: {path}")
        if not moved:
            print("torchaudio needs no mending")
    checks = examine()
    for check in checks:
        print(f"{'ok ' if not check.remedy else 'BAD'} {check.name}: {check.found}")
        if check.remedy:
            print(f"    -> {check.remedy}")
    return int(any(check.remedy for check in checks))


def inspect(args: argparse.Namespace) -> int:
    _import_espnet()
    from rich.console import Console
    from rich.table import Table

    from espnet_l0prune.deploy.inspect import inspect_experiment
    from espnet_l0prune.plugin.experiment import last_of

    checkpoint = args.checkpoint or last_of(args.experiment)
    found = inspect_experiment(args.experiment, checkpoint)
    if args.json:
        print(json.dumps(dataclasses.asdict(found), indent=1))
        return 0
    table = Table(title=f"{args.experiment}/{checkpoint}")
    table.add_column("module", no_wrap=True)
    table.add_column("units left")
    for column in ("parameters", "share", "MACs", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.rows:
        if not row.params and all(left == size for size, left in row.units.values()):
            continue  # the width of a stream that was not touched
        units = ", ".join(
            f"{kind} {left}" + (f"/{size}" if left != size else "")
            for kind, (size, left) in row.units.items()
            if (size, left) != (1, 1)
        )
        numbers = (
            f"{row.params:,}",
            f"{row.params_share:.1%}",
            f"{row.macs / 1e6:,.1f} M",
            f"{row.macs_share:.1%}",
        )
        table.add_row(row.module, units, *numbers)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
    for part in ("encoder", "decoder", "model"):
        print(
            f"{part}: {found.params[part]:,} parameters, {found.macs[part] / 1e6:,.1f} M "
            f"MACs for {found.seconds:g} s of audio and {found.tokens} tokens"
        )
    for cost, expected in found.expected_sparsity.items():
        print(
            f"sparsity of the {found.scope} in {cost}: expected {expected:.4f}, actual "
            f"{found.actual_sparsity[cost]:.4f}, reachable "
            f"{found.reachable_sparsity[cost]:.4f}"
        )
    return 0


def adopt(args: argparse.Namespace) -> int:
    _import_espnet()
    from espnet_l0prune.deploy.adopt import Choice
    from espnet_l0prune.deploy.adopt import adopt as adopt_experiment
    from espnet_l0prune.plugin.sites import WORDS

    target = {"params": args.params, "macs": args.macs}
    target = {cost: value for cost, value in target.items() if value is not None}
    choice = Choice(
        target=target or {"params": 0.5},
        scope=args.scope,
        units=args.units if args.units in WORDS else args.units.split(","),
        epochs=(args.epochs, args.finetune_epochs),
        data=not args.no_data,
    )
    adopted = adopt_experiment(args.source, args.out, args.checkpoint, choice)
    reach = ", ".join(f"{v:.1%} of the {k}" for k, v in adopted.reachable.items())
    print(f"{args.scope}: {adopted.parameters:,} parameters; units reach {reach}")
    print("Next:")
    for line in adopted.commands:
        print(f"  {line}")
    return 0


def cut(args: argparse.Namespace) -> int:
    _import_espnet()
    from espnet_l0prune.deploy.cut import cut_experiment

    report = cut_experiment(args.experiment, args.out, args.checkpoint, args.force)
    before, after = report.model_parameters
    encoder_before, encoder_after = report.encoder_parameters
    print(
        f"{args.out}: encoder {encoder_before:,} -> {encoder_after:,} parameters, model "
        f"{before:,} -> {after:,}"
    )
    for cost, sparsity in report.sparsity.items():
        target = report.target.get(cost, "none")
        print(
            f"sparsity of the {report.scope} in {cost}: {sparsity:.4f} (target {target})"
        )
    print(f"masked and cut differ by {report.difference}")
    return 0


def verify(args: argparse.Namespace) -> int:
    _import_espnet()
    from espnet_l0prune.deploy.verify import (
        compare,
        outputs,
        require_equal,
        tolerance_of,
    )
    from espnet_l0prune.plugin.experiment import last_of, load_experiment
    from espnet_l0prune.plugin.workload import sites_of

    masked, _ = load_experiment(args.experiment, args.checkpoint)
    small, _ = load_experiment(args.cut, last_of(args.cut))
    difference = compare(outputs(masked), outputs(small))
    print(f"difference: {difference}")
    require_equal(difference, tolerance_of(sites_of(masked)))
    return 0


def export(args: argparse.Namespace) -> int:
    _import_espnet()
    from espnet_l0prune.deploy.card import About
    from espnet_l0prune.deploy.export import export as export_model
    from espnet_l0prune.plugin.experiment import average_of

    about = About(
        name=args.name or args.out.stem,
        licence=args.license,
        language=args.language,
        datasets=tuple(args.datasets),
    )
    checkpoint = args.checkpoint or average_of(args.experiment)
    line = export_model(
        args.experiment, checkpoint, args.out, args.form, about, args.force, args.int8
    )
    print(f"{args.out}: {args.out.stat().st_size / 1e6:,.1f} MB, {line}")
    if args.form != "stock":
        extra = "[onnx]" if args.form == "onnx" else ""
        print(
            f"ESPnet needs this package to load it: pip install 'espnet_l0prune{extra}'"
        )
    return 0


def report(args: argparse.Namespace) -> int:
    _import_espnet()
    from espnet_l0prune.report.page import write_report

    page, *pictures = write_report(args.experiments, args.out)
    print(f"{page}, and {len(pictures)} pictures beside it")
    return 0


def _autoload_file() -> Path:
    return Path(sysconfig.get_path("purelib")) / "espnet_l0prune.pth"


def enable(args: argparse.Namespace) -> int:
    from espnet_l0prune.autoload import PTH_LINE

    _autoload_file().write_text(PTH_LINE)
    print(f"enabled: {_autoload_file()}")
    return 0


def disable(args: argparse.Namespace) -> int:
    _autoload_file().unlink(missing_ok=True)
    print(
        f"disabled: {_autoload_file()} is gone; `import espnet_l0prune` still registers"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, OSError, RuntimeError, ImportError) as e:
        if args.debug:
            raise
        print(f"espnet-l0prune {args.command}: {e}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""What each command does: arguments in, an answer out.

torch and ESPnet take seconds to import, and may be what `doctor` is asked to mend: each
function imports what it needs.
"""

import argparse
import contextlib
import dataclasses
import io
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_l0prune.autoload import register

Track = Callable[[Sequence], Iterable]


@dataclass
class Answer:
    """What a command found or did.

    Attributes:
        data: for machines: what `--json` prints
        shown: for people: lines, or rich's tables
        code: the exit code
    """

    data: object
    shown: Sequence[object] = ()
    code: int = 0


@contextlib.contextmanager
def _busy(text: str) -> Iterator[Track]:
    """Say on a terminal what takes its time, and how long it has.

    What is given: a function that goes through a sequence, and has the terminal show how
    much time is left.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=20),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    hidden = not console.is_terminal
    with progress.Progress(
        *columns, console=console, transient=True, disable=hidden
    ) as shown:
        task = shown.add_task(text, total=None)
        yield lambda items: shown.track(items, total=len(items), task_id=task)


def say(text: str) -> None:
    """Tell people something, if they listen."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _steps(command: str) -> Iterator[Callable[[str], None]]:
    """Say what a long command does, a line for each step, also where the lines go into a
    file; on a terminal the time runs below them."""
    begun = time.monotonic()
    with _busy(command):
        yield lambda text: say(f"{command}, {time.monotonic() - begun:.0f} s: {text}")


def _import_espnet() -> None:
    """Import ESPnet without what it and its dependencies print, and torch's warnings
    about ESPnet."""
    warnings.simplefilter("ignore", FutureWarning)
    noise = io.StringIO()
    try:
        with (
            _busy("importing ESPnet"),
            contextlib.redirect_stdout(noise),
            contextlib.redirect_stderr(noise),
        ):
            import espnet2.tasks.asr

            register(espnet2.tasks.asr.__name__)  # says why, where the import could not
    except (ImportError, OSError) as e:
        raise ImportError(
            f"this ESPnet cannot be used: {e}. `espnet-l0prune doctor` says what is wrong"
        ) from e


def doctor(args: argparse.Namespace) -> Answer:
    """Say what is wrong with the installation; `--fix` mends torchaudio."""
    from espnet_l0prune.doctor import examine, mend_torchaudio

    moved = mend_torchaudio() if args.fix else []
    lines = [
        f"moved aside, since it cannot load beside this torch: {path}" for path in moved
    ]
    if args.fix and not moved:
        lines.append("no library was moved: torchaudio loads, or would not without them")
    with _busy("looking"):
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


def inspect(args: argparse.Namespace) -> Answer:
    """Count an experiment, module by module."""
    _import_espnet()
    from rich import box
    from rich.table import Table

    from espnet_l0prune.deploy.inspect import inspect_experiment
    from espnet_l0prune.plugin.experiment import last_of

    checkpoint = args.checkpoint or last_of(args.experiment)
    with _busy(f"counting {args.experiment}"):
        found = inspect_experiment(args.experiment, checkpoint)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # for 80 columns
    table.add_column("module", no_wrap=True)
    table.add_column("units left")
    for column in ("parameters", "MACs (M)"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found.rows:
        if not row.amounts["params"] and all(
            left == size for size, left in row.units.values()
        ):
            continue  # the width of a stream that was not touched
        units = ", ".join(
            f"{kind} {left}" + (f"/{size}" if left != size else "")
            for kind, (size, left) in row.units.items()
            if (size, left) != (1, 1)
        )
        module = row.module
        for network in ("encoder", "decoder"):  # their blocks are named after them
            module = module.replace(f"{network}.{network}s.", f"{network}s.")
        table.add_row(
            module,
            units,
            f"{row.amounts['params']:,} {row.shares['params']:6.1%}",
            f"{row.amounts['macs'] / 1e6:,.1f} {row.shares['macs']:6.1%}",
        )
    lines = [
        f"{part}: {found.amounts['params'][part]:,} parameters, "
        f"{found.amounts['macs'][part] / 1e6:,.1f} M "
        f"MACs for {found.seconds:g} s of audio and {found.tokens} tokens"
        for part in ("encoder", "decoder", "model")
    ]
    lines += [
        f"sparsity of the {found.scope} in {cost}: expected {expected:.4f}, actual "
        f"{found.actual_sparsity[cost]:.4f}, reachable "
        f"{found.reachable_sparsity[cost]:.4f}"
        for cost, expected in found.expected_sparsity.items()
    ]
    title = f"{args.experiment}/{checkpoint}"
    return Answer(dataclasses.asdict(found), [title, table, *lines])


def adopt(args: argparse.Namespace) -> Answer:
    """Write what prunes and fine-tunes a dense experiment."""
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
    with _steps("adopt") as step:
        adopted = adopt_experiment(args.source, args.out, args.checkpoint, choice, step)
    reach = ", ".join(f"{v:.1%} of the {k}" for k, v in adopted.reachable.items())
    return Answer(
        dataclasses.asdict(adopted),
        [
            f"{args.scope}: {adopted.parameters:,} parameters; units reach {reach}",
            *adopted.notes,
            "Next:",
            *(f"  {line}" for line in adopted.commands),
        ],
    )


def cut(args: argparse.Namespace) -> Answer:
    """Cut the closed units out of a pruned experiment, and compare."""
    _import_espnet()
    from espnet_l0prune.deploy.cut import cut_experiment

    with _steps("cut") as step:
        report = cut_experiment(
            args.experiment, args.out, args.checkpoint, args.force, step
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
    lines.append(f"masked and cut differ by {report.difference}")
    return Answer({"out": args.out, **dataclasses.asdict(report)}, lines)


def verify(args: argparse.Namespace) -> Answer:
    """Compare a cut experiment with the one that it was cut from."""
    _import_espnet()
    from espnet_l0prune.deploy.verify import (
        compare,
        outputs,
        require_equal,
        tolerance_of,
    )
    from espnet_l0prune.plugin.experiment import last_of, load_experiment
    from espnet_l0prune.plugin.workload import sites_of

    with _busy("comparing"):
        masked, _ = load_experiment(args.experiment, args.checkpoint)
        small, _ = load_experiment(args.cut, last_of(args.cut))
        difference = compare(outputs(masked), outputs(small))
    remedy = (
        "Compare checkpoints of the same run: the cut model before fine-tuning with the "
        "gated one that it was cut from."
    )
    require_equal(difference, tolerance_of(sites_of(masked)), remedy)
    return Answer(dataclasses.asdict(difference), [f"difference: {difference}"])


def bench(args: argparse.Namespace) -> Answer:
    """Time the encoders of experiments, in turns."""
    _import_espnet()
    from rich.table import Table

    from espnet_l0prune.core.ranges import check
    from espnet_l0prune.core.terms import count_parameters
    from espnet_l0prune.deploy.bench import encoder_macs, noise, real_time_factors
    from espnet_l0prune.plugin.experiment import last_of, load_experiment
    from espnet_l0prune.plugin.register import make_workload

    check("command line", {"--rounds": args.rounds, "--seconds": args.seconds})
    models, heard = {}, {}
    for folder in args.experiments:
        model, conf = load_experiment(folder, args.checkpoint or last_of(folder))
        models[str(folder)], fs = model, make_workload(conf).fs
        speech, rate = noise(model, args.seconds, fs)
        heard[str(folder)] = (*speech.shape, rate)
    if len(set(heard.values())) > 1:
        raise ValueError(
            f"the experiments take audio of (samples or frames, features, rate) {heard}; "
            "expected the same of all: time them apart"
        )
    with _busy(f"{args.rounds} rounds of {args.seconds:g} s, on one thread") as track:
        factors = real_time_factors(models, [speech], rate, args.rounds, track)
    rows = [
        {
            "experiment": name,
            "encoder_parameters": count_parameters(model.encoder),
            "macs": encoder_macs(model, args.seconds, fs),
            "rtf": factors[name],
            "speed_up": factors[next(iter(models))] / factors[name],
        }
        for name, model in models.items()
    ]
    table = Table(title=f"encoders, {args.seconds:g} s of audio, one thread")
    table.add_column("experiment", overflow="fold")
    for column in ("parameters", "MACs", "RTF", "speed-up"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["experiment"],
            f"{row['encoder_parameters']:,}",
            f"{row['macs'] / 1e6:,.1f} M",
            f"{row['rtf']:.4f}",
            f"{row['speed_up']:.2f}x",
        )
    return Answer({"seconds": args.seconds, "rows": rows}, [table])


def export(args: argparse.Namespace) -> Answer:
    """Pack a model for the zoo."""
    _import_espnet()
    from espnet_l0prune.deploy.card import SOURCE, WHEEL
    from espnet_l0prune.deploy.export import export as export_model
    from espnet_l0prune.plugin.experiment import average_of

    checkpoint = args.checkpoint or average_of(args.experiment)
    about = _about(args, args.out.stem)
    options = (args.form, about, args.force, args.int8)
    with _steps("export") as step:
        line = export_model(args.experiment, checkpoint, args.out, *options, step)
    size = args.out.stat().st_size
    lines = [f"{args.out}: {size / 1e6:,.1f} MB, {line}"]
    if args.form != "stock":
        packages = WHEEL if args.form == "plugin" else f"onnxruntime {WHEEL}"
        lines.append(f"ESPnet needs more to load it: pip install {packages}. {SOURCE}")
    return Answer({"out": args.out, "bytes": size, "verified": line}, lines)


def _about(args: argparse.Namespace, name: str):
    from espnet_l0prune.deploy.card import About

    return About(
        name=args.name or name,
        licence=args.license,
        language=args.language,
        datasets=tuple(args.datasets),
    )


def card(args: argparse.Namespace) -> Answer:
    """Write a model's card."""
    _import_espnet()
    from espnet_l0prune.core.files import check_file, replace
    from espnet_l0prune.deploy.card import card_of
    from espnet_l0prune.plugin.experiment import average_of

    check_file(args.out, args.force)
    checkpoint = args.checkpoint or average_of(args.experiment)
    with _busy(f"counting {args.experiment}"):
        text = card_of(
            args.experiment, checkpoint, _about(args, args.experiment.resolve().name)
        )
    replace(args.out, lambda part: part.write_text(text, "utf-8"), args.force)
    return Answer({"out": args.out}, [f"{args.out}: {len(text.splitlines())} lines"])


def report(args: argparse.Namespace) -> Answer:
    """Write a page of pictures and tables."""
    _import_espnet()
    from espnet_l0prune.report.page import write_report

    with _busy("reading and drawing") as track:
        found = write_report(args.experiments, args.out, track)
    missing = [f"missing: {what}" for what in found.missing]
    written = f"{found.page}, and {len(found.pictures)} pictures beside it"
    return Answer(dataclasses.asdict(found), [*found.headline, *missing, written])


def schema(args: argparse.Namespace) -> Answer:
    """Print the JSON schema of our options."""
    _import_espnet()
    import json

    from espnet_l0prune.plugin.schema import schema as options

    found = options()
    return Answer(found, [json.dumps(found, indent=1)])


def completion(args: argparse.Namespace) -> Answer:
    """Print what completes these commands in a shell."""
    import shtab

    from espnet_l0prune.cli import get_parser

    text = shtab.complete(get_parser(), args.shell)
    return Answer({"shell": args.shell, "script": text}, [text])


def _autoload_file() -> Path:
    return Path(sysconfig.get_path("purelib")) / "espnet_l0prune.pth"


def enable(args: argparse.Namespace) -> Answer:
    """Put the file that registers us at Python's start into this environment."""
    from espnet_l0prune.autoload import PTH_LINE
    from espnet_l0prune.core.files import replace

    file = _autoload_file()
    replace(file, lambda part: part.write_text(PTH_LINE))
    return Answer({"enabled": file}, [f"enabled: {file}"])


def disable(args: argparse.Namespace) -> Answer:
    """Remove that file."""
    file = _autoload_file()
    file.unlink(missing_ok=True)
    line = f"disabled: {file} is gone; `import espnet_l0prune` still registers"
    return Answer({"disabled": file}, [line])

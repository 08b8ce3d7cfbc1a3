"""This is the command `espnet-l0prune bench`."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from espnet_l0prune.cli.command import Answer, Command
from espnet_l0prune.cli.espnet import import_espnet
from espnet_l0prune.cli.options import FILE, add_path
from espnet_l0prune.cli.progress import busy, steps
from espnet_l0prune.cli.tables import table_of
from espnet_l0prune.core.ranges import RANGES

RANGE = RANGES["command line"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bench` to its parser."""
    add_path(
        parser, "experiments", nargs="+", help="the first one is what others are beside"
    )
    parser.add_argument("--checkpoint", help="default: latest.pth, or model.pth of a cut")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help=f"of audio, at once, {RANGE['--seconds']}",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help=f"the figure is the median, {RANGE['--rounds']}",
    )
    add_path(
        parser,
        "--profile",
        FILE,
        help="compare with the time that it promises, for its --seconds, runtime and "
        "threads; --rounds are then the fewest",
    )

    add_path(
        parser,
        "--decode",
        FILE,
        nargs="+",
        metavar="AUDIO",
        help="time the whole decoding of these files, part by part, and not the encoder",
    )
    parser.add_argument(
        "--beam_size",
        type=int,
        default=10,
        help=f"of --decode, {RANGE['--beam_size']}; default: 10",
    )
    parser.add_argument(
        "--ctc_weight",
        type=float,
        default=0.3,
        help=f"of --decode, {RANGE['--ctc_weight']}; default: 0.3",
    )


def run(args: argparse.Namespace) -> Answer:
    """Time the encoders of experiments, or their whole decoding, in turns."""
    import_espnet()
    return _decoding(args) if args.decode else _encoders(args)


def _decoding(args: argparse.Namespace) -> Answer:
    """Time features, encoder, CTC and beam search of experiments."""
    from espnet_l0prune.core.ranges import check
    from espnet_l0prune.deploy.decoding import (
        rate_of,
        read_audio,
        recognizer,
        time_decoding,
    )
    from espnet_l0prune.plugin.experiment import last_of

    search = {"beam_size": args.beam_size, "ctc_weight": args.ctc_weight}
    numbers = {f"--{name}": value for name, value in search.items()}
    check("command line", numbers | {"--rounds": args.rounds})
    configs = {folder: folder / "config.yaml" for folder in args.experiments}
    for rate in {rate_of(config) for config in configs.values()}:
        waves = read_audio(args.decode, rate)  # which are of one rate, or refused
    recognizers = {
        str(folder): recognizer(
            config, folder / (args.checkpoint or last_of(folder)), search
        )
        for folder, config in configs.items()
    }
    seconds = sum(map(len, waves)) / rate
    with busy(f"{seconds:.0f} s of audio, on one thread") as track:
        found = time_decoding(recognizers, waves, args.rounds, track)
    first, rows = found[next(iter(found))], []
    for name, times in found.items():
        row: dict[str, Any] = {"experiment": name}
        row |= {k: getattr(times, k) for k in ("features", "encoder", "ctc", "greedy")}
        row |= {k: getattr(times, k) for k in ("search", "joint")}
        row |= {"speed_up": first.joint / times.joint}
        rows.append(row)
    parts = ("features", "encoder", "ctc", "greedy", "search", "joint")
    heads = ("features", "encoder", "CTC", "greedy: all", "search", "joint: all")
    table = table_of(
        f"ms for a second of audio, beam of {args.beam_size}, one thread",
        ("experiment", *heads, "speed-up"),
        (
            (
                row["experiment"],
                *(_milliseconds(row[part], seconds) for part in parts),
                f"{row['speed_up']:.2f}x",
            )
            for row in rows
        ),
    )
    share = max(row["search"] / row["joint"] for row in rows)
    told = f"the beam search takes up to {share:.0%} of the joint decoding"
    if share > 0.5:
        told += ": a smaller encoder saves little of it"
    return Answer({"seconds": seconds, "rows": rows}, [table, told])


def _milliseconds(time: float | None, seconds: float) -> str:
    return "" if time is None else f"{1000 * time / seconds:.2f}"


def _encoders(args: argparse.Namespace) -> Answer:
    """Time encoders, and compare them with a profile if there is one."""
    from espnet_l0prune.core.ranges import check
    from espnet_l0prune.core.terms import count_parameters
    from espnet_l0prune.deploy.bench import (
        encoder_macs,
        measured,
        random_speech,
        real_time_factors,
    )
    from espnet_l0prune.plugin.building import sample_rate_of
    from espnet_l0prune.plugin.experiment import last_of, load_experiment
    from espnet_l0prune.plugin.options import read_profile

    check("command line", {"--rounds": args.rounds, "--seconds": args.seconds})
    profile = None if args.profile is None else read_profile(args.profile)
    args.seconds = args.seconds if profile is None else profile.seconds
    models, heard = {}, {}
    for folder in args.experiments:
        model, conf = load_experiment(folder, args.checkpoint or last_of(folder))
        models[str(folder)], fs = model, sample_rate_of(conf)
        speech, rate = random_speech(model, args.seconds, fs)
        heard[str(folder)] = (*speech.shape, rate)
    if len(set(heard.values())) > 1:
        raise ValueError(
            f"the experiments take audio of (samples or frames, features, rate) {heard}; "
            "expected the same of all: time them apart"
        )
    if profile is not None:
        return _beside_promises(models, profile, fs, args.rounds)
    with busy(f"{args.rounds} rounds of {args.seconds:g} s, on one thread") as track:
        factors = real_time_factors(models, [speech], rate, args.rounds, track)
    rows = [
        {
            "experiment": name,
            "encoder_parameters": count_parameters(measured(model)),
            "macs": encoder_macs(model, args.seconds, fs),
            "rtf": factors[name],
            "speed_up": factors[next(iter(models))] / factors[name],
        }
        for name, model in models.items()
    ]
    both = any(len(measured(model)) > 1 for model in models.values())
    what = "front ends and encoders" if both else "encoders"
    table = table_of(
        f"{what}, {args.seconds:g} s of audio, one thread",
        ("experiment", "parameters", "MACs", "RTF", "speed-up"),
        (
            (
                row["experiment"],
                f"{row['encoder_parameters']:,}",
                f"{row['macs'] / 1e6:,.1f} M",
                f"{row['rtf']:.4f}",
                f"{row['speed_up']:.2f}x",
            )
            for row in rows
        ),
    )
    return Answer({"seconds": args.seconds, "rows": rows}, [table])


def _beside_promises(
    models: dict[str, Any], profile: Any, rate: int, rounds: int
) -> Answer:
    """Return the measured times of encoders beside those that a profile promises."""
    from espnet_l0prune.deploy.timer import Conditions, time_encoders
    from espnet_l0prune.plugin.counting import promised_time

    how = Conditions(profile.seconds, profile.runtime, profile.threads, profile.int8)
    promised = {k: promised_time(model.encoder, profile) for k, model in models.items()}
    with steps("bench") as step, tempfile.TemporaryDirectory() as folder:
        times, spread = time_encoders(models, how, rate, Path(folder), step, rounds)
    first = next(iter(models))
    rows = [
        {
            "experiment": name,
            "promised": promised[name],
            "measured": times[name],
            "difference": times[name] / promised[name] - 1,
            "speed_up": times[first] / times[name],
        }
        for name in models
    ]
    table = table_of(
        f"encoders, {how}",
        ("experiment", "promised", "measured", "difference", "speed-up"),
        (
            (
                row["experiment"],
                f"{1000 * row['promised']:.1f} ms",
                f"{1000 * row['measured']:.1f} ms",
                f"{row['difference']:+.1%}",
                f"{row['speed_up']:.2f}x",
            )
            for row in rows
        ),
    )
    told = (
        f"measured times are certain to {spread:.1%}; promises, to {profile.spread:.1%}"
    )
    return Answer({"spread": spread, "rows": rows}, [table, told])


COMMAND = Command(
    "time the encoders of experiments, in turns, on one thread",
    "bench exp/asr_dense exp/asr_finetuned",
    run,
    add_options,
)

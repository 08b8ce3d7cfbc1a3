#!/usr/bin/env python3
"""Decode test sets with the dense experiment and with the packed, pruned model.

One process for both, since importing ESPnet takes long. The packed model comes out of
its zip through espnet_model_zoo, as a stranger would load it: no experiment, no
teacher, no network. Writes OUT/{dense,pruned}/SET/text and OUT/measures.json.
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import tempfile
import warnings
from pathlib import Path

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

import soundfile  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from rich.progress import track  # noqa: E402

with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
    from espnet2.bin.asr_inference import Speech2Text
    from espnet_model_zoo.downloader import ModelDownloader

from espnet_l0prune.deploy.bench import sizes_and_times  # noqa: E402

SECONDS = 10  # of audio, for multiply-accumulates and long pieces
TIMED = 20  # utterances for the real-time factor


def read_waves(datadir: Path) -> dict[str, Path]:
    lines = (datadir / "wav.scp").read_text("utf-8").splitlines()
    return {utt: Path(path) for utt, path in (line.split(maxsplit=1) for line in lines)}


def decode(speech2text: Speech2Text, datadir: Path, out: Path, what: str) -> None:
    """Write the best hypothesis of every utterance."""
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for utt, path in track(read_waves(datadir).items(), description=f"decoding {what}"):
        wave, _ = soundfile.read(path, dtype="float32")
        text, *_ = speech2text(wave)[0]
        lines.append(f"{utt} {text}".rstrip() + "\n")
    (out / "text").write_text("".join(lines), "utf-8")


def unpacked(archive: Path, options: dict, cache: Path) -> Speech2Text:
    """Load a zip of the model zoo, in a folder that has nothing but it."""
    archive, here = archive.resolve(), Path.cwd()
    try:
        os.chdir(cache)
        files = ModelDownloader(cache).download_and_unpack(str(archive))
        for path in files.values():
            if not Path(path).resolve().is_relative_to(cache.resolve()):
                raise SystemExit(
                    f"decode: {archive} names {path}, which it does not hold"
                )
        return Speech2Text.from_pretrained(**files, **options)
    finally:
        os.chdir(here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--dense_model", required=True)
    parser.add_argument("--zip", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--datadir", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    options = yaml.safe_load(args.config.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as cache:
        models = {
            "dense": Speech2Text(
                args.dense / "config.yaml", args.dense / args.dense_model, **options
            ),
            "pruned": unpacked(args.zip, options, Path(cache)),
        }
        for name, speech2text in models.items():
            for test in args.sets:
                where = args.out / name / test
                decode(speech2text, args.datadir / test, where, f"{test}, {name}")
    paths = [p for test in args.sets for p in read_waves(args.datadir / test).values()]
    waves = [
        torch.from_numpy(soundfile.read(p, dtype="float32")[0]) for p in paths[:TIMED]
    ]
    networks = {name: model.asr_model for name, model in models.items()}
    rate = soundfile.info(paths[0]).samplerate
    measures = sizes_and_times(networks, waves, rate, SECONDS)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    report = {"seconds": SECONDS, "machine": machine, "models": measures}
    (args.out / "measures.json").write_text(json.dumps(report, indent=1), "utf-8")


if __name__ == "__main__":
    main()

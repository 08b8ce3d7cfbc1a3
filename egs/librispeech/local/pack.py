#!/usr/bin/env python3
"""Pack a fine-tuned experiment for the model zoo, with nothing missing and no teacher.

The files go into one folder first, and the configuration names them as they stand there:
ESPnet's packing keeps absolute paths and follows links, which no other machine has.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml


def pack(experiment: Path, model: str, folder: Path) -> None:
    """Write `folder`/packed.zip."""
    config = yaml.safe_load((experiment / "config.yaml").read_text("utf-8"))
    state = torch.load(experiment / model, map_location="cpu", weights_only=True)
    state.pop("projection", None)  # of the distillation
    torch.save(state, folder / "model.pth")
    extras = []
    stats = config.get("normalize_conf", {}).get("stats_file")
    if stats:
        shutil.copyfile(stats, folder / "feats_stats.npz")
        config["normalize_conf"]["stats_file"] = "feats_stats.npz"
        extras.append("feats_stats.npz")
    if config.get("bpemodel"):
        shutil.copyfile(config["bpemodel"], folder / "bpe.model")
        config["bpemodel"] = "bpe.model"
        extras.append("bpe.model")
    for name in ("teacher_config", "teacher_model_file"):
        config["model_conf"].pop(name, None)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, "utf-8")

    command = [sys.executable, "-m", "espnet2.bin.pack", "asr", "--outpath", "packed.zip"]
    command += ["--asr_train_config", "config.yaml", "--asr_model_file", "model.pth"]
    for extra in extras:
        command += ["--option", extra]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", type=Path, required=True)
    parser.add_argument("--model", required=True, help="a checkpoint's file name")
    parser.add_argument("--out", type=Path, required=True, help="the zip to write")
    args = parser.parse_args()
    # beside the result: renaming it into place is then one step
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
        pack(args.experiment, args.model, Path(folder))
        (Path(folder) / "packed.zip").replace(args.out)
    print(f"  {args.out}")


if __name__ == "__main__":
    main()

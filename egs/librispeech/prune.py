#!/usr/bin/env python3
"""Prune an experiment from Python: adopt, train, cut, fine-tune.

    python prune.py exp/asr_dense exp/asr_l0 --train data/train --valid data/valid

Run it again after an interruption: what was finished is kept, and trainings resume.
"""

import argparse
from pathlib import Path

from espnet2.tasks.asr import ASRTask

from espnet_l0prune.deploy.adopt import adopt
from espnet_l0prune.deploy.choice import Choice
from espnet_l0prune.deploy.cut import cut_experiment
from espnet_l0prune.plugin.experiment import average_of, load_experiment, read_config


def train(
    config: Path,
    out: Path,
    folders: tuple[Path, Path],
    speech: str,
    fold_lengths: list[int],
) -> None:
    """One training by a configuration that `adopt` wrote."""
    stats = out.parent / "stats"
    command = ["--config", str(config)]
    shapes = []
    for part, folder in zip(("train", "valid"), folders, strict=True):
        file, kind = speech.split(",")
        for data in (f"{file},speech,{kind}", "text,text,text"):
            command += [f"--{part}_data_path_and_name_and_type", f"{folder}/{data}"]
        for name in ("speech", "text"):
            shapes += [f"--{part}_shape_file", f"{stats}/{part}/{name}_shape"]
    for length in fold_lengths:
        shapes += ["--fold_length", str(length)]
    if not (stats / "valid/stats_keys").exists():  # the last file
        ASRTask.main(
            cmd=[*command, "--output_dir", str(stats), "--collect_stats", "true"]
        )
    ASRTask.main(cmd=[*command, *shapes, "--output_dir", str(out), "--resume", "true"])


def prune(
    dense: Path,
    checkpoint: str | None,
    out: Path,
    folders: tuple[Path, Path],
    speech: str,
    choice: Choice,
) -> Path:
    """From a dense experiment to the fine-tuned small one, whose folder it returns."""
    if not (out / "prune.yaml").exists():
        adopt(dense, out, checkpoint, choice)
    data = folders, speech, read_config(dense / "config.yaml").fold_length
    train(out / "prune.yaml", out / "pruned", *data)
    if not (out / "cut").exists():
        report = cut_experiment(out / "pruned", out / "cut")
        print(f"cut: {report.sparsity}, difference {report.difference}")
    train(out / "finetune.yaml", out / "finetuned", *data)
    return out / "finetuned"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense", type=Path, help="the dense experiment's folder")
    parser.add_argument("--checkpoint", help="of the dense one; default: its average")
    parser.add_argument("out", type=Path, help="a new folder, or one to go on with")
    parser.add_argument("--train", type=Path, required=True, help="with wav.scp and text")
    parser.add_argument("--valid", type=Path, required=True, help="with wav.scp and text")
    parser.add_argument("--speech", default="wav.scp,sound", help="file and its type")
    parser.add_argument("--params", type=float, default=0.5, help="sparsity")
    parser.add_argument("--epochs", type=int, nargs=2, help="of pruning, of fine-tuning")
    args = parser.parse_args(argv)
    epochs = tuple(args.epochs) if args.epochs else (None, None)
    choice = Choice(target={"params": args.params}, epochs=epochs, data=False)
    found = prune(
        args.dense,
        args.checkpoint,
        args.out,
        (args.train, args.valid),
        args.speech,
        choice,
    )
    model, _ = load_experiment(found, average_of(found))
    print(f"{found}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    main()

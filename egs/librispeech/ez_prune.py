#!/usr/bin/env python3
"""Prune an experiment from Python, by ESPnet-EZ: adopt, train, cut, fine-tune.

    python ez_prune.py exp/asr_dense exp/asr_l0 --train data/train --valid data/valid

Needs `pip install six` beside ESPnet, which espnetez imports. Run it again after an
interruption: what was finished is kept, and trainings resume.
"""

import argparse
import sys
from pathlib import Path

from espnetez.config import from_yaml
from espnetez.trainer import Trainer

from espnet_l0prune.deploy.adopt import Choice, adopt
from espnet_l0prune.deploy.cut import cut_experiment
from espnet_l0prune.plugin.experiment import average_of, load_experiment


def train(config: Path, out: Path, folders: tuple[Path, Path], speech: str) -> None:
    """One training by a configuration that `adopt` wrote."""
    file, kind = speech.split(",")
    trainer = Trainer(
        task="asr",
        train_config=from_yaml("asr", config) | {"resume": True},
        output_dir=str(out),
        stats_dir=str(out.parent / "stats"),
        train_dump_dir=str(folders[0]),
        valid_dump_dir=str(folders[1]),
        data_info={"speech": [file, kind], "text": ["text", "text"]},
        ngpu=0,
    )
    if not (out.parent / "stats/valid/stats_keys").exists():  # the last file
        trainer.collect_stats()
    trainer.train()


def prune(
    dense: Path,
    checkpoint: str | None,
    out: Path,
    folders: tuple,
    speech: str,
    choice: Choice,
) -> Path:
    """From a dense experiment to the fine-tuned small one, whose folder it returns."""
    if not (out / "prune.yaml").exists():
        adopt(dense, out, checkpoint, choice)
    train(out / "prune.yaml", out / "pruned", folders, speech)
    if not (out / "cut").exists():
        report = cut_experiment(out / "pruned", out / "cut")
        print(f"cut: {report.sparsity}, difference {report.difference}")
    train(out / "finetune.yaml", out / "finetuned", folders, speech)
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
    del sys.argv[1:]  # ESPnet-EZ would read them as ESPnet's
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

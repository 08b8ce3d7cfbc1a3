"""Experiments that nobody trained, with the files that a report reads."""

import json
import shutil
from pathlib import Path

import torch
import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.train.reporter import Reporter

from espnet_l0prune.testing.models import arguments

SCHEDULE = {
    "sparsity_scheduler": "linear",
    "sparsity_scheduler_conf": {
        "target": {"params": 0.3, "macs": 0.2},
        "warmup_steps": 2,
        "ramp_steps": 6,
        "hold_steps": 4,
    },
    "sparsity_constraint": "nupi",
}
RESULTS = {
    "seconds": 10,
    "machine": "here",
    "models": {
        name: {
            "encoder_parameters": 100 * n,
            "parameters": 200 * n,
            "macs": 10**9 * n,
            "rtf": 0.01 * n,
            "wer": {"clean": 0.05, "other": 0.15},
            "cer": {"clean": 0.02, "other": 0.05},
        }
        for name, n in (("dense", 2), ("pruned", 1))
    },
}
CUT = {
    "scope": "encoder",
    "target": {"params": 0.3},
    "sparsity": {"params": 0.301, "macs": 0.2},
    "encoder_parameters": [100, 70],
    "model_parameters": [200, 170],
    "difference": {"float64": 1e-15, "float32": 1e-7},
}


def stats(epochs: int) -> dict:
    """What ESPnet's own reporter saves of a run that prunes."""
    reporter = Reporter()
    for epoch in range(1, epochs + 1):
        reporter.set_epoch(epoch)
        for part in ("train", "valid"):
            with reporter.observe(part) as sub:
                for _ in range(3):
                    figures = {"loss": 5.0 / epoch, "loss_task": 4.0, "loss_layer": 1.0}
                    for cost in ("params", "macs"):
                        figures[f"sparsity_target_{cost}"] = 0.05 * epoch
                        figures[f"sparsity_expected_{cost}"] = 0.04 * epoch
                        figures[f"sparsity_actual_{cost}"] = 0.03 * epoch
                        figures[f"lambda_{cost}"] = 1.0 * epoch
                        figures[f"xi_{cost}"] = -1.0 * epoch
                    sub.register(figures)
                    sub.next()
    return {epoch: dict(parts) for epoch, parts in reporter.stats.items()}


def write_experiment(folder: Path) -> Path:
    """One that prunes, as ESPnet leaves it after its fourth epoch."""
    folder.mkdir(parents=True)
    args = arguments(**SCHEDULE, max_epoch=6)
    torch.manual_seed(0)
    torch.save(ASRTask.build_model(args).state_dict(), folder / "latest.pth")
    change_stats(folder, stats(4))
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    return folder


def write_cut(folder: Path, pruned: Path) -> Path:
    """What a cut of it leaves, with gates where there should be none."""
    shutil.copytree(pruned, folder)
    change_config(folder, sparsity_scheduler=None)
    (folder / "checkpoint.pth").unlink()
    (folder / "cut.json").write_text(json.dumps(CUT))
    return folder


def change_config(folder: Path, **changes) -> None:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


def change_stats(folder: Path, stats: object) -> None:
    torch.save({"reporter": {"stats": stats}}, folder / "checkpoint.pth")

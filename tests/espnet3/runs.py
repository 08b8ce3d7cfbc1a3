"""ESPnet3's own training runs on a little data, in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet3.systems.base.training import train
from espnet3.utils.config_utils import load_and_merge_config
from omegaconf import OmegaConf

from espnet_l0prune.testing.models import TOKENS
from espnet_l0prune.testing.runs import CONFIG

TASK = "espnet3.systems.esp2_asr.task.ASRTask"
OPTIMIZER = "espnet_l0prune.core.optim.L0AdamW"
CALLBACK = {"_target_": "espnet_l0prune.plugin.callback.L0Callback"}
UTTERANCES, BATCH = 12, 4
EPOCH = UTTERANCES // BATCH  # updates
# As in ESPnet2's run, but that it hears audio
SAME = "token_list", "normalize", "encoder", "decoder", "model"
MODEL: dict[str, Any] = {
    **{k: v for k, v in CONFIG.items() if k.removesuffix("_conf") in SAME},
    "frontend": "default",
    "frontend_conf": {"fs": 8000, "n_fft": 256, "hop_length": 80, "n_mels": 20},
    "sparsity_goal_conf": {"target": {"params": 0.4}},
    "sparsity_scheduler": "linear",
    "sparsity_scheduler_conf": {"warmup_steps": 2, "ramp_steps": 7, "hold_steps": 4},
}
PREPROCESSOR = {
    "_target_": "espnet2.train.preprocessor.CommonPreprocessor",
    "token_type": "char",
    "token_list": TOKENS,
}
OPTIM = {"lr": 1e-3, "gate_lr": 0.1, "weight_decay": 1e-6}


def make_noise(folder: Path) -> None:
    """Write random audio and texts, as both of ESPnet's trainings take them."""
    rng, texts, paths, shapes = np.random.default_rng(0), [], [], []
    for i in range(UTTERANCES):
        samples = int(rng.integers(4000, 6000))
        np.save(folder / f"{i}.npy", rng.standard_normal(samples).astype(np.float32))
        paths.append(f"{i} {folder}/{i}.npy")
        texts.append(f"{i} {''.join(rng.choice(list('ABCDEFGH'), 5))}")
        shapes.append(f"{i} {samples}")
    for name, lines in (("feats", paths), ("text", texts), ("shape", shapes)):
        (folder / name).write_text("\n".join(lines) + "\n")


def configuration(data: Path, out: Path, *changes: dict) -> dict:
    """Return what a user's training.yaml says, with some options changed."""
    source = {"data_src": "tests.espnet3.noise", "data_src_args": {"folder": str(data)}}
    batches = {"type": "unsorted", "batch_size": BATCH, "shape_files": [f"{data}/shape"]}
    conf = {
        "task": TASK,
        "exp_dir": str(out),
        "stats_dir": str(out.with_name("stats")),
        "seed": 0,
        "dataset": {"train": [source], "valid": [source], "preprocessor": PREPROCESSOR},
        "dataloader": {
            part: {"iter_factory": {"batches": batches, "num_workers": 0}}
            for part in ("train", "valid")
        },
        "model": MODEL,
        "optimizer": {"_target_": OPTIMIZER, **OPTIM},
        "best_model_criterion": [["valid/loss_on_budget", 1, "min"]],
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 6,
            "callbacks": [CALLBACK],
        },
    }
    merged: Any = OmegaConf.create(conf)
    for change in changes:
        if "optimizer" in change:  # of another class, with other options
            merged.optimizer = {}
        merged = OmegaConf.merge(merged, change)
    return OmegaConf.to_container(merged)


def run(data: Path, out: Path, *changes: dict) -> None:
    """Run the `train` stage, as `run.py --stages train` does."""
    file = out.with_suffix(".yaml")
    file.write_text(OmegaConf.to_yaml(configuration(data, out, *changes)))
    train(load_and_merge_config(file, "training.yaml", "egs3.TEMPLATE.esp2_asr"))


def last(out: Path) -> dict:
    """Return Lightning's last checkpoint."""
    return torch.load(out / "last.ckpt", map_location="cpu", weights_only=False)

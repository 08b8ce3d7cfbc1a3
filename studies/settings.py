"""Configurations of the comparison: the recipe's, at a smaller size, other epochs."""

import copy
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import yaml
from common import ROOT

from espnet_l0prune.deploy.choice import with_settings

RECIPE = ROOT / "egs/librispeech"
FILES = {"train": "train_small", "prune": "prune", "finetune": "finetune"}
EPOCHS = {"train": 20, "prune": 6, "finetune": 6}
# What differs from the recipe's model: this one has 1 M parameters, and a batch half a
# minute of audio.
SMALLER = {
    "batch_bins": 500_000,
    "encoder_conf": {"output_size": 72, "linear_units": 288},
    "decoder_conf": {"linear_units": 288},
}
# In updates: 113 are an epoch of the half corpus.
SCHEDULE = {"warmup_steps": 30, "ramp_steps": 350, "hold_steps": 200}


def merged(conf: Mapping, *changes: Mapping) -> dict:
    """A configuration with changes; mappings in it are merged."""
    return functools.reduce(with_settings, changes, copy.deepcopy(dict(conf)))


def recipe_conf(name: str) -> dict:
    """The recipe's configuration `train`, `prune` or `finetune` at this size."""
    text = (RECIPE / f"conf/{FILES[name]}.yaml").read_text("utf-8")
    return merged(yaml.safe_load(text), SMALLER, {"max_epoch": EPOCHS[name]})


def short_hash(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def written(file: Path, conf: Mapping) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(conf), sort_keys=False), "utf-8")
    return file

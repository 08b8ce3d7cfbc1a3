"""Disturbed speech, decoded by a dense experiment and by its factors."""

import json
import logging

import conditions
import numpy as np
import soundfile
import svd
import torch
import yaml

from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import arguments

HEARD = {"frontend": "default", "input_size": None}


def test_a_table_of_experiments(tmp_path):
    dense, small, file = tmp_path / "dense", tmp_path / "small", tmp_path / "found.json"
    save_experiment(dense, **HEARD)
    ranks = svd.factorize(dense, "model.pth", {"params": 0.3}, small / "model.pth")
    args = arguments(encoder="low_rank_conformer", model="espnet", **HEARD)
    args.encoder_conf["ranks"] = ranks
    (small / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    noise = 0.1 * np.random.default_rng(0).normal(size=(2, conditions.RATE))
    for name, wave in zip("ab", noise, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", wave, conditions.RATE)
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/a.wav\nb {tmp_path}/b.wav\n")
    (tmp_path / "text").write_text("a A B\nb C\n")
    threads = torch.get_num_threads()
    models = ["--models", f"dense={dense}", f"small={small}"]
    try:
        conditions.main([*models, "--data", str(tmp_path), "--json", str(file)])
    finally:
        torch.set_num_threads(threads)
        logging.disable(logging.NOTSET)
    rows = json.loads(file.read_text())["rows"]
    assert [row.pop("condition") for row in rows] == [*conditions.CONDITIONS]
    names = {f"{model} {r} (%)" for model in ("dense", "small") for r in ("WER", "CER")}
    assert all(row.keys() == names for row in rows)
    # of three words, which an untrained model can hardly say
    assert all(rate >= 100 for row in rows for rate in row.values())

"""Self-supervised models that have no kind with gates stay whole as front ends, and are
refused as encoders."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml
from espnet2.asr.frontend.huggingface import HuggingFaceFrontend
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.archive import unpack_model
from espnet_l0prune.plugin.experiment import load_experiment, load_model
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.runs import train_on_noise
from tests.plugin.test_s3prl import DECODE, PREENCODER, follow

KINDS = ("w2v_bert", "hubert")
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
HUBERT = {
    "conv_dim": [4] * 7,
    "num_conv_pos_embedding_groups": 2,
    **{"apply_spec_augment": False, "layerdrop": 0.0},
}


def publish(kind: str, folder: Path) -> dict:
    """A model of random weights, as Hugging Face's package saves it.

    ESPnet has front ends of those that read audio from 202609 on.
    """
    hub = transformers
    if kind == "hubert":
        model = hub.HubertModel(hub.HubertConfig(**SIZES, intermediate_size=12, **HUBERT))
        features = hub.Wav2Vec2FeatureExtractor()
    else:
        sizes = {**SIZES, "intermediate_size": 12, "conv_depthwise_kernel_size": 3}
        model = hub.Wav2Vec2BertModel(hub.Wav2Vec2BertConfig(**sizes, layerdrop=0.0))
        features = hub.SeamlessM4TFeatureExtractor()
    for part in (model, features):
        part.save_pretrained(folder)
    frontend = HuggingFaceFrontend(str(folder))
    if kind == "hubert" and not hasattr(frontend, "waveform_input"):
        pytest.skip("this ESPnet takes the lengths of audio for those of features")
    return {
        "input_size": None,
        "frontend": "huggingface",
        "frontend_conf": {"model": str(folder)},
        **PREENCODER,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_front_end_of_hugging_faces_stays_whole_and_counts(kind, tmp_path, capsys):
    dense = save_experiment(tmp_path / "dense", **publish(kind, tmp_path / "hub"))
    size = count_parameters(dense.frontend)
    assert size > 1000
    command = ["adopt", str(tmp_path / "dense"), "--no_data", "--params", "0.1"]
    counted = {}
    for scope in ("encoder", "model"):
        out = tmp_path / scope
        assert main([*command, "--scope", scope, "--out", str(out)]) == 0
        prune = yaml.safe_load((out / "prune.yaml").read_text())
        assert prune["frontend"] == "huggingface"
        assert prune["encoder"] == "l0_conformer"
        printed = capsys.readouterr().out
        said = "frontend: huggingface is left whole, as it has no kind with gates; it cou"
        assert (said in printed) == (scope == "model")
        counted[scope] = printed
    assert f"{count_parameters(dense):,}" in counted["model"]
    assert f"{count_parameters(dense.encoder):,}" in counted["encoder"]
    out = tmp_path / "frontend"
    assert main([*command, "--scope", "frontend", "--out", str(out)]) == 1
    refused = capsys.readouterr().err
    assert "frontend: huggingface; only s3prl, espnet_ssl can be pruned" in refused


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_after_it_goes_the_whole_way(kind, tmp_path, capsys):
    model_conf = {"ctc_weight": 0.5, "extract_feats_in_collect_stats": False}
    more = {"encoder": "conformer", "model_conf": model_conf}
    train_on_noise(tmp_path, **publish(kind, tmp_path / "hub"), **more)
    dense, out, archive = (tmp_path / name for name in ("dense", "l0", "pruned.zip"))
    words = ["adopt", str(dense), "--out", str(out), "--scope", "model"]
    words += ["--params", "0.1", "--epochs", "8", "--finetune_epochs", "1"]
    assert main(words) == 0
    follow(capsys.readouterr().out, [])
    cut = yaml.safe_load((out / "cut/cut.json").read_text())
    assert 0.1 <= cut["sparsity"]["params"] < 0.2
    assert cut["difference"]["float64"] <= 1e-10
    model, _ = load_experiment(out / "finetuned", "valid.acc.ave.pth")
    assert type(model.frontend) is HuggingFaceFrontend
    assert main(["export", "plugin", str(out / "finetuned"), "--out", str(archive)]) == 0
    files = unpack_model(archive, tmp_path / "unpacked")
    again, _ = load_model(*files)
    state = model.state_dict()
    assert all(state[k].equal(v) for k, v in again.state_dict().items())
    wave = tmp_path / "wave.npy"
    np.save(wave, 0.1 * np.random.default_rng(1).standard_normal(8000).astype("float32"))
    done = subprocess.run(
        [sys.executable, "-c", DECODE, *map(str, files), str(wave)],
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert "decoded" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "encoder", ["torchaudiohubert", "hubert", "wav2vec2", "avhubert", "beats"]
)
def test_self_supervised_encoders_are_refused(encoder, tmp_path, capsys):
    """By their names alone: most need fairseq, which need not be here."""
    save_experiment(tmp_path / "dense")
    file = tmp_path / "dense/config.yaml"
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(config | {"encoder": encoder}))
    assert encoder in next(
        choices.classes
        for choices in ASRTask.class_choices_list
        if choices.name == "encoder"
    )
    words = ["adopt", str(tmp_path / "dense"), "--no_data", "--params", "0.1"]
    for scope in ("encoder", "model"):
        out = str(tmp_path / scope)
        assert main([*words, "--scope", scope, "--out", out]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"the experiment has encoder: {encoder}; only conformer, " in line
        assert (
            "XEUS can be pruned as front ends: train a recognizer with frontend: " in line
        )
        assert "s3prl or espnet_ssl, or choose another experiment." in line

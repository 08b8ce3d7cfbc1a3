"""Here are small self-supervised models of random weights, in files as s3prl has them."""

from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from espnet2.tasks.asr import ASRTask
from s3prl.upstream.hubert.hubert_model import (
    HubertConfig,
    HubertModel,
    HubertPretrainingConfig,
)
from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config, Wav2Vec2Model
from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

from espnet_l0prune.testing.models import arguments

RATE = 16_000  # Hz
SIZES = {
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 12,
    "encoder_attention_heads": 4,
    "conv_feature_layers": "[(12,10,5)] + [(12,3,2)] * 4 + [(12,2,2)] * 2",
    "conv_pos": 16,
    "conv_pos_groups": 4,
}
# As the published large models: norms in all convolutions, and before the branches
LARGE = {"extractor_mode": "layer_norm", "layer_norm_first": True, "conv_bias": True}
RELATIVE = {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": 32}
KINDS = ("hubert", "wav2vec2", "wavlm")


def publish(folder: Path, kind: str = "hubert", large: bool = False) -> dict:
    """Write a model's file into a folder.

    Args:
        folder: the folder, which is there
        kind: one of `KINDS`
        large: whether its norms are where the published large models have them

    Returns:
        options of ESPnet's front end `s3prl` that load it
    """
    torch.manual_seed(0)
    sizes = SIZES | (LARGE if large else {})
    task = {"normalize": large, "sample_rate": RATE, "label_rate": 50.0}
    if kind == "hubert":
        cfg = HubertConfig(label_rate=50.0, final_dim=8, **sizes)
        tokens = [[*"abcdefg"]]
        model = HubertModel(cfg, HubertPretrainingConfig(**task), tokens)
        content = {"model_cfg": asdict(cfg), "dictionaries_symbols": tokens}
    elif kind == "wav2vec2":
        cfg = Wav2Vec2Config(final_dim=8, quantize_targets=True, latent_vars=6, **sizes)
        model = Wav2Vec2Model(cfg)
        content = {"model_cfg": asdict(cfg)}
    else:
        options = {**sizes, **RELATIVE, "max_distance": 80, "normalize": large}
        model = WavLM(WavLMConfig(options))
        content = {"cfg": options, "model": model.state_dict()}
    content |= {"task_cfg": task, "model_weight": model.state_dict()}
    file = folder / f"{kind}{'-large' if large else ''}.pt"
    torch.save(content, file)
    frontend_conf = {"upstream": f"{kind}_local", "path_or_url": str(file)}
    return {
        "frontend_conf": frontend_conf,
        "download_dir": str(folder),
        "multilayer_feature": True,
    }


def save_dense(folder: Path, options: dict, **changes: object) -> None:
    """Write a dense experiment with such a front end, a config.yaml and a checkpoint.

    Args:
        folder: the folder to make
        options: what `publish` has returned
        changes: further options of the experiment
    """
    args = arguments(encoder="conformer", input_size=None, model="espnet", optim="adamw")
    args.frontend, args.frontend_conf = "s3prl", dict(options)
    args.preencoder = "linear"
    args.preencoder_conf = {"input_size": 16, "output_size": 20}
    vars(args).update(changes)
    model = ASRTask.build_model(args)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), folder / "model.pth")

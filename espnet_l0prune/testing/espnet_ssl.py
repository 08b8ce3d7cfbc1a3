"""Here are small self-supervised models of random weights, as ESPnet trains them."""

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from espnet2.tasks.ssl import SSLTask

SHAPES = [[12, 10, 5], *[[12, 3, 2]] * 4, *[[12, 2, 2]] * 2]  # channels, width, stride
# As XEUS: a norm in each convolution, positions by another, and both feed-forward modules
CONFIG: dict[str, Any] = {
    "frontend": "wav2vec_cnn",
    "frontend_conf": {
        "norm_mode": "layer_norm",
        "conv_mode": "standard",
        "bias": True,
        "shapes": SHAPES,
    },
    "specaug": None,
    "specaug_conf": {},
    "normalize": None,
    "normalize_conf": {},
    "preencoder": "linear",
    "preencoder_conf": {"output_size": 16},
    "encoder": "e_branchformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 4,
        "attention_layer_type": "selfattn",
        "pos_enc_layer_type": "conv",
        "use_flash_attn": False,
        "cgmlp_linear_units": 24,
        "cgmlp_conv_kernel": 3,
        "num_blocks": 2,
        "input_layer": None,
        "use_ffn": True,
        "macaron_ffn": True,
        "linear_units": 12,
    },
    "model": "espnet",
    "model_conf": {},
    "input_size": None,
    "loss": [{"name": "hubert", "conf": {"num_classes": 7, "final_dim": 8}}],
    "util": [{"name": "mask", "conf": {"mask_prob": 0.3, "mask_length": 3}}],
    "token_list": [*"abcdefg"],
    "init": None,
}


def publish(folder: Path, **changes: Any) -> dict:
    """Write a model's file and its config.yaml into a folder.

    Args:
        folder: the folder, which is there
        changes: options that differ from CONFIG's; those in a mapping add to it, but for
            a front end or an encoder of another kind, which has no other options

    Returns:
        options of ESPnet's front end `espnet_ssl` that load it
    """
    config = dict(CONFIG)
    config |= {f"{part}_conf": {} for part in ("frontend", "encoder") if part in changes}
    for name, value in changes.items():
        old = config[name]
        both = isinstance(value, dict) and isinstance(old, dict)
        config[name] = {**old, **value} if both else value
    torch.manual_seed(0)
    model = SSLTask.build_model(argparse.Namespace(**config))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    file = folder / "ssl.pth"
    torch.save(model.state_dict(), file)
    frontend_conf = {"path_or_url": str(file)}
    return {"frontend_conf": frontend_conf, "multilayer_feature": True}

"""Here is a small Whisper model of random weights, which whisper takes for published."""

import base64
import dataclasses
import gzip
import hashlib
from pathlib import Path

import numpy as np
import torch
import whisper
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.testing.models import arguments

SIZES = {"state": 16, "head": 4, "layer": 2}
DIMENSIONS = {
    "n_mels": 80,
    "n_audio_ctx": 60,
    "n_vocab": 20_000,  # as that of the published ones, it is more than any width
    "n_text_ctx": 60,
    **{f"n_{kind}_{k}": v for kind in ("audio", "text") for k, v in SIZES.items()},
}
NAME = "small-and-random"


def publish(folder: Path) -> dict[str, str]:
    """Write a model into a folder, and let whisper know it by its name and its digest.

    Returns:
        options of an encoder and of a decoder of ESPnet's that load it
    """
    torch.manual_seed(0)
    model = whisper.model.Whisper(whisper.model.ModelDimensions(**DIMENSIONS))
    torch.nn.init.normal_(model.decoder.positional_embedding)
    content = {"dims": dataclasses.asdict(model.dims)}
    file = folder / f"{NAME}.pt"
    torch.save({**content, "model_state_dict": model.state_dict()}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    whisper._MODELS[NAME] = f"https://nowhere/{digest}/{file.name}"
    heads = np.ones((SIZES["layer"], SIZES["head"]), dtype=bool)
    if hasattr(whisper, "_ALIGNMENT_HEADS"):  # from version 20230314 on
        packed = base64.b85encode(gzip.compress(heads.tobytes()))
        whisper._ALIGNMENT_HEADS[NAME] = packed
    return {"whisper_model": NAME, "download_dir": str(folder)}


def save_whisper(folder: Path, options: dict[str, str]) -> None:
    """Write a dense experiment of ESPnet's Whisper, a config.yaml and a checkpoint.

    Args:
        folder: the folder to make
        options: what `publish` has returned
    """
    args = arguments(input_size=1, normalize=None, model="espnet", optim="adamw")
    args.encoder, args.encoder_conf = "whisper", dict(options)
    args.decoder, args.decoder_conf = "whisper", dict(options)
    args.model_conf = {"ctc_weight": 0.0}
    model = ASRTask.build_model(args)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(model.state_dict(), folder / "model.pth")

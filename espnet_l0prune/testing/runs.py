"""ESPnet's own training command runs on a little data, in this process."""

from collections.abc import Mapping

import numpy as np
import soundfile
import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.testing.models import ENCODER, TOKENS

UTTERANCES = 12
CONFIG = {
    "token_type": "char",
    "token_list": TOKENS,
    "input_size": 20,
    "frontend": None,
    "normalize": None,
    "num_workers": 0,
    "num_att_plot": 0,
    "use_tensorboard": False,
    "use_matplotlib": False,
    "keep_nbest_models": 1,
    "batch_type": "unsorted",
    "batch_size": 4,
    "max_epoch": 6,
    "encoder": "l0_conformer",
    "encoder_conf": ENCODER,
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": 8, "num_blocks": 1},
    "model": "l0_distill",
    "model_conf": {"ctc_weight": 0.3},
    "optim": "l0_adamw",
    "optim_conf": {"lr": 1e-3, "gate_lr": 0.3},
    "sparsity_constraint": "nupi",
    "sparsity_constraint_conf": {"multiplier_lr": 50.0, "kp": 1.0},
    "sparsity_scheduler": "cubic",
    "sparsity_scheduler_conf": {
        "target": 0.3,
        "warmup_steps": 2,
        "ramp_steps": 6,
        "hold_steps": 4,
    },
}


def make_data(folder, shortest: int = 50, longest: int = 80) -> None:
    """Write random features and texts, as ESPnet's command takes them.

    Args:
        folder: the folder to write into
        shortest, longest: lengths in frames
    """
    rng, feats, texts, shapes = np.random.default_rng(0), [], [], []
    for i in range(UTTERANCES):
        frames = int(rng.integers(shortest, longest + 1))
        np.save(folder / f"{i}.npy", rng.standard_normal((frames, 20), np.float32))
        feats.append(f"u{i:02} {folder}/{i}.npy")
        texts.append(f"u{i:02} {''.join(rng.choice(list('ABCDEFGH'), 5))}")
        shapes.append(f"u{i:02} {frames},20")
    for name, lines in (("feats", feats), ("text", texts), ("shape", shapes)):
        (folder / name).write_text("\n".join(lines) + "\n")


def make_audio(folder, samples: int = 8000) -> dict[str, list]:
    """Write random audio and texts, and return the options of ESPnet's command for them.

    Args:
        folder: the folder to write into
        samples: length of each utterance, at 16 kHz
    """
    rng, utterances = np.random.default_rng(0), {}
    for i in range(8):
        wave = rng.standard_normal(samples) * 0.1
        utterances[f"u{i}"] = wave, "".join(rng.choice(list("ABCDEFGH"), 3))
    return write_audio(folder, utterances)


def write_audio(folder, utterances: Mapping[str, tuple]) -> dict[str, list]:
    """Write audio and texts, and return the options of ESPnet's command for them.

    Args:
        folder: the folder to write into
        utterances: samples in [-1, 1] at 16 kHz, (samples,), and the text, by name
    """
    lines: dict[str, list[str]] = {"wav.scp": [], "text": [], "shape": []}
    for name, (wave, text) in utterances.items():
        soundfile.write(folder / f"{name}.wav", wave, 16_000)
        lines["wav.scp"].append(f"{name} {folder}/{name}.wav")
        lines["text"].append(f"{name} {text}")
        lines["shape"].append(f"{name} {len(wave)}")
    for name, entries in lines.items():
        (folder / name).write_text("\n".join(entries) + "\n")
    options: dict[str, list] = {}
    for part in ("train", "valid"):
        options[f"{part}_data_path_and_name_and_type"] = [
            [f"{folder}/wav.scp", "speech", "sound"],
            [f"{folder}/text", "text", "text"],
        ]
        options[f"{part}_shape_file"] = [f"{folder}/shape"]
    return options


def train_on_noise(folder, **changes) -> None:
    """Train a stock model of ESPnet's for an epoch on random audio, into folder/dense.

    Args:
        folder: the folder that the audio is written into
        changes: options that differ from CONFIG's, or that it lacks
    """
    train_dense(folder, **make_audio(folder), **changes)


def train_dense(folder, **changes) -> None:
    """Train a stock model of ESPnet's, for an epoch unless it is changed.

    Args:
        folder: the folder, in which the experiment will be `dense`
        changes: options that differ from CONFIG's, or that it lacks, as those of the data
    """
    config = {k: v for k, v in CONFIG.items() if not k.startswith("sparsity")}
    config |= {
        "model": "espnet",
        "optim": "adamw",
        "optim_conf": {"lr": 1e-4},
        "max_epoch": 1,
        "best_model_criterion": [["valid", "acc", "max"]],
        "output_dir": str(folder / "dense"),
    }
    file = folder / "dense.yaml"
    file.write_text(yaml.safe_dump(config | changes))
    ASRTask.main(cmd=["--config", str(file)])


def run(data, out, *more: str, **changes) -> None:
    """Run `python -m espnet2.bin.asr_train`, with options of CONFIG changed."""
    conf = {**CONFIG, **changes}
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(conf))
    command = ["--config", str(file), "--output_dir", str(out), "--resume", "true"]
    ASRTask.main(cmd=[*command, *data_options(data), *more])


def data_options(data) -> list[str]:
    """Return the options of ESPnet's command for what `make_data` wrote."""
    options = []
    for part in ("train", "valid"):
        options += [
            *(f"--{part}_data_path_and_name_and_type", f"{data}/feats,speech,npy"),
            *(f"--{part}_data_path_and_name_and_type", f"{data}/text,text,text"),
            *(f"--{part}_shape_file", f"{data}/shape"),
        ]
    return options


def final(out) -> dict:
    """Return the last checkpoint."""
    return torch.load(out / "checkpoint.pth", weights_only=False)

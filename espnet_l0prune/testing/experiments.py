"""These folders of experiments are as ESPnet's training leaves them."""

import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.testing.models import arguments


def save_experiment(folder, seed: int = 0, **changes):
    """Write a dense experiment, a config.yaml and a checkpoint, and return its model."""
    folder.mkdir(parents=True, exist_ok=True)
    changes = {"encoder": "conformer", "model": "espnet", "optim": "adamw", **changes}
    args = arguments(**changes)
    torch.manual_seed(seed)
    dense = ASRTask.build_model(args)
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(dense.state_dict(), folder / "model.pth")
    return dense

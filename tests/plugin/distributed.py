"""One process of test_two_processes_train_as_one."""

import copy
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from espnet_l0prune.core.gates import HardConcrete, LogAlpha
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.plugin.layer_weight import NAME
from espnet_l0prune.testing.runs import CONFIG, run

TEACHER = {"teacher_config": "config.yaml", "teacher_model_file": "model.pth"}
PLAIN = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0, "use_cnn_module": False}
SCHEDULE = {
    **CONFIG["sparsity_scheduler_conf"],
    "gate_start": "taylor",
    "warmup_steps": 20,
    "milestones": [0.15, 0.3],
}
EPOCHS = 12  # of three updates
DECODER = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0}


def train(folder: Path, rank: int | None) -> None:
    """A training without anything random; its gates and multipliers after each update.

    It is to be called in a process of its own, some of whose classes it changes.

    Args:
        folder: that has the data and the teacher, in dense, and gets the history, in
            RANK.pth
        rank: of the process among two; None for one that trains alone
    """
    history = []

    def note(optimizer: L0AdamW, *_) -> None:
        alphas = [p for group in optimizer.param_groups for p in group["params"]]
        state = {
            "update": optimizer.progress.update,
            "multipliers": optimizer.progress.multipliers,
            "layer_weight": optimizer.param_groups[0][NAME],
            "log_alpha": [alpha for alpha in alphas if isinstance(alpha, LogAlpha)],
        }
        history.append(copy.deepcopy(state))

    register_optimizer_step_post_hook(note)  # behind those of the optimizer itself
    HardConcrete.noisy = lambda gate, alpha, noise: gate.noise_free(alpha)
    torch.set_num_threads(1)
    more = []
    if rank is not None:
        more = ["--dist_backend", "gloo", "--dist_init_method", f"file://{folder}/meet"]
        more += ["--dist_world_size", "2", "--dist_rank", str(rank)]
    out = folder / ("alone" if rank is None else "together")
    teacher = {name: f"{folder}/dense/{file}" for name, file in TEACHER.items()}
    conf = {
        "model_conf": {**CONFIG["model_conf"], **teacher},
        "encoder_conf": {**CONFIG["encoder_conf"], **PLAIN},
        "decoder_conf": {**CONFIG["decoder_conf"], **DECODER},
        "train_dtype": "float64",
        # CTC's loss is in float32: at a larger rate, the rest drifts apart in the warm-up
        "optim_conf": {**CONFIG["optim_conf"], "lr": 1e-5},
        "sparsity_constraint": "projected",
        "sparsity_constraint_conf": {},
        "sparsity_scheduler_conf": SCHEDULE,
        "max_epoch": EPOCHS,
    }
    run(folder, out, *more, **conf)
    torch.save(history, folder / f"{rank}.pth")

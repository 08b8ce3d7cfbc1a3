"""One training of test_two_processes_train_alike: Lightning starts the other process."""

import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from tests.espnet3.runs import CALLBACK, MODEL, run

LENGTHS = {"warmup_steps": 1, "ramp_steps": 2, "hold_steps": 1, "in_epochs": True}


class Keep(Callback):
    """It writes what each process ends with, but for what batch norms have seen."""

    def on_fit_end(self, trainer, pl_module):
        file = Path(pl_module.config.exp_dir).with_name(f"{trainer.global_rank}.pth")
        named = pl_module.model.named_parameters()
        torch.save({name: weight.detach() for name, weight in named}, file)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    strategy = {
        "_target_": "lightning.pytorch.strategies.DDPStrategy",
        "process_group_backend": "gloo",
    }
    callbacks = [CALLBACK, {"_target_": f"tests.espnet3.distributed.{Keep.__name__}"}]
    model = {**MODEL, "sparsity_scheduler_conf": LENGTHS}
    trainer = {"strategy": strategy, "callbacks": callbacks}
    run(folder, folder / "exp", {"num_device": 2, "model": model, "trainer": trainer})

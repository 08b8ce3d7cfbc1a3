"""A Lightning callback for test_recipe.py, by which a training is killed."""

import os
import signal

from lightning.pytorch.callbacks import Callback


class Killed(Callback):
    """It kills its own process after some update.

    Args:
        update: number of updates in the whole run, with those before it was resumed
    """

    def __init__(self, update: int):
        self.update = update

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.update:
            os.kill(os.getpid(), signal.SIGKILL)

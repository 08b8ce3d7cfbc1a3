"""ESPnet3 trains with Lightning; this callback is all that it needs to prune."""

import argparse
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump
from espnet3.components.callbacks.ema import EMACallback
from lightning.pytorch.callbacks import (
    Callback,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from espnet_l0prune.core.files import replace
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.optim import L0AdamW
from espnet_l0prune.core.reading import read_tensors
from espnet_l0prune.plugin.building import plain_tensors_only
from espnet_l0prune.plugin.decay import LinearDecayLR, fit_decays_
from espnet_l0prune.plugin.experiment import (
    last_of,
    load_state,
    read_config,
    read_weights,
)
from espnet_l0prune.plugin.notes import Notes
from espnet_l0prune.plugin.options import inline_files, is_pruned, settle_options
from espnet_l0prune.plugin.prepare import STATE, prepare
from espnet_l0prune.plugin.trainer import forget_plateaus_

PRECISIONS = "32-true", "64-true", "16-mixed", "bf16-mixed"
CRITERIA = "valid/loss_on_budget", "valid/acc_on_budget"
AVERAGING = EMACallback, StochasticWeightAveraging, WeightAveraging
OPTIMIZER = f"{L0AdamW.__module__}.{L0AdamW.__name__}"


class L0Callback(Callback):
    """An `L0Callback` does in ESPnet3's trainer what `L0Trainer` does in ESPnet2's.

    A training.yaml names it in `trainer: callbacks`. All that is resumed is in the
    weights and in the optimizer, so that Lightning's own checkpoints go on with a
    pruning. With a `seed`, each epoch begins with a seed of its own, as in ESPnet2, so
    that a run that was resumed is the one that never stopped, unless the data loader's
    own processes draw random numbers.
    """

    def __init__(self) -> None:
        self._config: str | None = None  # config.yaml of the run so far
        self._begun = False  # whether an epoch has
        self._notes = Notes()

    def setup(
        self, trainer: lightning.Trainer, pl_module: Any, stage: str | None = None
    ) -> None:
        """Load `init_param` of the configuration's `model`, as ESPnet2's trainings do.

        A checkpoint that the training resumes from replaces these weights later.
        """
        if stage != "fit":
            return
        model, conf = pl_module.model, pl_module.config.model
        ignores = bool(conf.get("ignore_init_mismatch"))
        files = conf.get("init_param") or []
        for init_param in [files] if isinstance(files, str) else files:
            if ":" not in init_param and not ignores:  # also one of Lightning's
                state = {**model.state_dict(), **read_weights(init_param)}
                load_state(model, state, init_param)
                continue
            with plain_tensors_only():
                load_pretrained_model(init_param, model, ignores, map_location="cpu")

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Complete the model and its optimizer, and refuse what cannot be pruned.

        The experiment's config.yaml, which ESPnet3 has just written, gets the structure
        of a network that was cut, and defaults, so that the model can be built from it
        elsewhere.

        Raises:
            ValueError: options that cannot train gates; see also `prepare`
        """
        file = _config_file(pl_module)
        args = read_config(file)
        inline_files(args)
        settle_options(args)
        earlier = last_of(file.parent)
        if not trainer.ckpt_path and earlier.endswith(".ckpt"):
            kept = read_tensors(file.with_name(earlier)).get("callbacks", {})
            self._config = kept.get(self.state_key, {}).get("config")
        _check(trainer, pl_module, args)
        model, (optimizer, *_) = pl_module.model, trainer.optimizers
        # ESPnet3 has no such options
        told = argparse.Namespace(**vars(args))
        told.ngpu = int(pl_module.device.type == "cuda") * trainer.world_size
        told.distributed = trainer.world_size > 1
        told.optim = type(optimizer).__name__
        with new_gates(model):
            prepare(told, model, optimizer)
        if trainer.is_global_zero:
            text = yaml_no_alias_safe_dump(vars(args), indent=4, sort_keys=False)
            _write(file, text)

    @property
    def state_key(self) -> str:
        """Return by what name Lightning's checkpoints keep `state_dict`."""
        return STATE

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning's checkpoints keep: the run's config.yaml, and figures of
        its epochs, which `report` reads."""
        return {"config": self._config, "epochs": self._notes.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what `state_dict` returned, when the run is resumed."""
        self._config = state_dict["config"]
        # earlier versions kept none
        self._notes.epochs = list(state_dict.get("epochs", []))

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException
    ) -> None:
        """Restore the run's config.yaml, which ESPnet3 has overwritten, where the options
        of the call that resumes it were refused."""
        if self._config is not None and not self._begun and trainer.is_global_zero:
            _write(_config_file(pl_module), self._config)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Refuse to go on in the middle of an epoch.

        Raises:
            ValueError: a checkpoint that was not written at the end of an epoch
        """
        if trainer.fit_loop.restarted_mid_epoch:
            raise ValueError(
                f"fit: ckpt_path is {trainer.ckpt_path}, of the middle of an epoch, the "
                "rest of which would not be that of the run that stopped; expected one "
                "of the end of an epoch, such as last.ckpt"
            )

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Fit the schedules to the run.

        Raises:
            ValueError: see `SparsityController.begin_epoch`
        """
        controller = getattr(pl_module.model, "controller", None)
        epochs, done = trainer.max_epochs or 0, trainer.current_epoch
        batches, updates = trainer.num_training_batches, None
        if math.isfinite(batches):  # the last update of an epoch may have fewer batches
            updates = math.ceil(batches / trainer.accumulate_grad_batches)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        fit_decays_(schedulers, updates, epochs - done)
        if controller is not None:
            controller.begin_epoch(updates, epochs, done)
            if not controller.on_budget:
                forget_plateaus_(schedulers)
        seed = pl_module.config.get("seed")
        if seed is not None:
            set_all_random_seed(int(seed) + done + 1)
        self._begun, self._config = True, _config_file(pl_module).read_text("utf-8")
        self._notes.begin()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the figures of a batch; one that was skipped has none."""
        if outputs:
            self._notes.trained(trainer.callback_metrics)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Note the figures of a validation."""
        if not trainer.sanity_checking:
            self._notes.validated(trainer.callback_metrics)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Note the epoch's figures, and draw what is left of each block."""
        controller = getattr(pl_module.model, "controller", None)
        if controller is None:
            update, standing = trainer.global_step, {}
        else:
            update, standing = controller.update, controller.report()
        self._notes.end(trainer.current_epoch + 1, update, standing)
        if controller is None or not trainer.is_global_zero:
            return
        from espnet_l0prune.plugin.structure_plot import plot_epoch

        boards = [
            x.experiment for x in trainer.loggers if isinstance(x, TensorBoardLogger)
        ]
        folder = Path(pl_module.config.exp_dir) / "structure"
        board = boards[0] if boards else None
        plot_epoch(pl_module.model, trainer.current_epoch + 1, folder, board, False)


def _config_file(pl_module: Any) -> Path:
    return Path(pl_module.config.exp_dir) / "config.yaml"


def _write(file: Path, text: str) -> None:
    replace(file, lambda path: path.write_text(text, "utf-8"))


@contextlib.contextmanager
def new_gates(model: nn.Module) -> Iterator[None]:
    """Let all gates be as they are before a training, within a `with` block.

    Lightning has loaded the weights that a training resumes from before there is an
    optimizer, and so before it can be checked whether the targets can be reached.
    """
    gates = [gate for gate in model.modules() if isinstance(gate, HardConcrete)]
    trained = [gate.log_alpha.detach().clone() for gate in gates]
    for gate in gates:
        gate.espnet_initialization_fn()
    yield
    for gate, values in zip(gates, trained, strict=True):
        with torch.no_grad():
            gate.log_alpha.copy_(values)


def l0_lineardecaylr(
    optimizer: torch.optim.Optimizer, warmup_ratio: float = 0.1, **_: object
) -> LinearDecayLR:
    """Return the scheduler `l0_lineardecaylr`, for `scheduler: _target_` in ESPnet3.

    Args:
        optimizer: has the peak of each learning rate
        warmup_ratio: share of the run in which the rate rises

    Other options are of another scheduler, which ESPnet3 merges into these; they are not
    used.
    """
    return LinearDecayLR(optimizer, warmup_ratio)


def _check(trainer: lightning.Trainer, pl_module: Any, args: argparse.Namespace) -> None:
    """Raise ValueError for settings of ESPnet3 that cannot train gates or a student."""
    _require(
        len(trainer.optimizers) == 1,
        "optimizers",
        f"{len(trainer.optimizers)} of them",
        "`optimizer`, a single one",
    )
    strategy = trainer.strategy
    _require(
        isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)),
        "trainer: strategy",
        type(strategy).__name__,
        "auto or ddp",
    )
    projection = (args.model_conf or {}).get("layer_projection", "identity")
    expected = "identity: ESPnet3 has set up the training before there is a matrix"
    _require(projection == "identity", "layer_projection", projection, expected)
    folder = Path(pl_module.config.exp_dir)
    earlier = last_of(folder)
    _require(
        trainer.ckpt_path or not earlier.endswith(".ckpt"),
        "exp_dir",
        f"{folder}, which has {earlier} of an earlier run",
        "another one; or, to go on with that run, its checkpoint in `fit: ckpt_path`",
    )
    for config in trainer.lr_scheduler_configs:
        decays = isinstance(config.scheduler, LinearDecayLR)
        _require(
            not decays or config.interval == "step",
            "scheduler_interval",
            config.interval,
            "step, for l0_lineardecaylr",
        )
    if not is_pruned(args):
        return
    milestones = (args.sparsity_scheduler_conf or {}).get("milestones")
    expected = "null: with ESPnet3, a run has one network, that of its end"
    _require(not milestones, "milestones", milestones, expected)
    optimizer = type(trainer.optimizers[0])
    name = f"{optimizer.__module__}.{optimizer.__name__}"
    _require(issubclass(optimizer, L0AdamW), "optimizer: _target_", name, OPTIMIZER)
    precision = trainer.precision
    expected = ", ".join(PRECISIONS)
    _require(precision in PRECISIONS, "trainer: precision", precision, expected)
    epochs, steps = trainer.max_epochs, trainer.max_steps
    counted = epochs is not None and epochs > 0
    _require(counted, "trainer: max_epochs", epochs, "the number of epochs")
    _require(steps == -1, "trainer: max_steps", steps, "-1, and max_epochs instead")
    stops = trainer.early_stopping_callbacks
    expected = "none that stops early, as losses rise with the sparsity"
    _require(not stops, "trainer: callbacks", "EarlyStopping", expected)
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        expected = "none that averages weights, as no average fits the gates"
        name = type(each).__name__
        _require(not isinstance(each, AVERAGING), "trainer: callbacks", name, expected)
    for criterion in pl_module.config.best_model_criterion:
        _require(
            criterion[0] in CRITERIA and criterion[1] == 1,
            "best_model_criterion",
            list(criterion),
            f"[{CRITERIA[0]}, 1, min], as other figures are best while the network is "
            "still dense, and an average of epochs fits no gates",
        )


def _require(condition: object, option: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{option} is {value}; expected {option}: {expected}")

"""Write what every later version has to read: experiments and zips of this one.

    python -m tests.versions.write_version

makes `VERSION-espnetESPNET.zip` beside this file, some 100 kB: a training that was
interrupted with its gates half closed, what was cut from it when it went on, both forms
of the model zoo, and what the cut model computes. Once it is committed it stays as it is.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import espnet
import numpy as np

import espnet_l0prune
from espnet_l0prune.cli import main
from espnet_l0prune.plugin.experiment import load_experiment
from espnet_l0prune.testing.runs import make_data, run
from tests.versions.outputs import compute

HERE = Path(__file__).parent
CONF = {"output_size": 4, "attention_heads": 2, "linear_units": 4, "num_blocks": 2}
ENCODER = {**CONF, "macaron_style": True, "cnn_module_kernel": 3}
DECODER = {"attention_heads": 1, "linear_units": 2, "num_blocks": 1}
SMALL = {"decoder_conf": DECODER, "seed": 1}
CHECKPOINT = "valid.acc.ave.pth"
INTERRUPTED, EPOCHS = 3, 6
STOCK = {"model": "espnet", "optim": "adam", "optim_conf": {"lr": 1e-3}}
FINETUNING = {
    **{**STOCK, **SMALL, "max_epoch": 1},
    **{"sparsity_scheduler": None, "sparsity_constraint": None},
    "encoder_conf": {**ENCODER, "units": [], "structure": "exp/cut/structure.yaml"},
}


class Interrupt(logging.Handler):
    """Ctrl-C, as soon as an epoch has been saved."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(f"{INTERRUPTED + 1}/{EPOCHS}epoch started"):
            raise KeyboardInterrupt


def prune() -> None:
    """Train, or go on with a training, in exp/pruned of the current folder."""
    conf = {"encoder_conf": {**ENCODER, "units": "default"}}
    run(Path("data"), Path("exp/pruned"), max_epoch=EPOCHS, **conf, **SMALL)


def finetune() -> None:
    """Train what is in exp/cut of the current folder, in exp/finetuned."""
    more = "--init_param", "exp/cut/model.pth"
    run(Path("data"), Path("exp/finetuned"), *more, **FINETUNING)


def write(target: Path) -> None:
    """All paths in it are relative: the work is done in a folder of a moment."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name in ("data", "exp"):
            Path(name).mkdir()
        make_data(Path("data"))
        interrupt = Interrupt()
        logging.basicConfig(level="INFO", handlers=[interrupt])
        with contextlib.suppress(KeyboardInterrupt):
            prune()
        logging.getLogger().removeHandler(interrupt)
        shutil.copytree("exp/pruned", "interrupted")
        prune()
        assert main(["cut", "exp/pruned", "--out", "exp/cut"]) == 0
        finetune()
        for form in ("plugin", "stock"):
            command = ["export", form, "exp/finetuned", "--out", f"{form}.zip"]
            assert main([*command, "--checkpoint", CHECKPOINT]) == 0
        model, _ = load_experiment(Path("exp/finetuned"), CHECKPOINT)
        np.save("computed.npy", compute(model))
        files = {file: file.name for file in Path().glob("*.*")}
        files |= {file: f"exp/cut/{file.name}" for file in Path("exp/cut").iterdir()}
        left = Path("interrupted")
        for name in ("config.yaml", "checkpoint.pth", f"{INTERRUPTED}epoch.pth"):
            files[left / name] = f"exp/pruned/{name}"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as archive:
            for file, name in files.items():
                archive.write(file, name)
        print(f"{target.name}: {os.stat(target).st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    write(HERE / f"{espnet_l0prune.__version__}-espnet{espnet.__version__}.zip")

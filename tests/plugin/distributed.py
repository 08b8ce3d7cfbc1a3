"""One process of test_two_processes_train_as_one: folder, rank (-1: alone)."""

import sys
from pathlib import Path

import torch

from espnet_l0prune.core.controller import SparsityController
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.testing.runs import CONFIG, run

PLAIN = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0, "use_cnn_module": False}
DECODER = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0}


def main(folder: Path, rank: int) -> None:
    history = []
    update = SparsityController.update_

    def note(controller: SparsityController) -> None:
        update(controller)
        state = {"phase": controller.phase, "multipliers": controller.multipliers}
        alphas = [gate.log_alpha for gate in controller.budget.gates.values()]
        history.append(snapshot({**state, "log_alpha": alphas}))

    SparsityController.update_ = note
    HardConcrete.forward = HardConcrete.values  # no sampling
    torch.set_num_threads(1)
    more = []
    if rank >= 0:
        more = ["--dist_backend", "gloo", "--dist_init_method", f"file://{folder}/meet"]
        more += ["--dist_world_size", "2", "--dist_rank", str(rank)]
    out = folder / ("alone" if rank < 0 else "together")
    conf = {
        "encoder_conf": {**CONFIG["encoder_conf"], **PLAIN},
        "decoder_conf": {**CONFIG["decoder_conf"], **DECODER},
        "train_dtype": "float64",
    }
    run(folder, out, *more, **conf)
    torch.save(history, folder / f"{rank}.pth")


def snapshot(state: dict) -> dict:
    """Detached from what training goes on to change."""
    multipliers = {cost: dict(m) for cost, m in state["multipliers"].items()}
    alphas = [alpha.detach().clone() for alpha in state["log_alpha"]]
    return {**state, "multipliers": multipliers, "log_alpha": alphas}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""The models of real size, with random weights: adopted, counted, cut, verified.

What they train for weeks on a GPU must not fail at the end of it.
"""

import argparse
import copy
import runpy
import tempfile
from pathlib import Path

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.selection import select
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.configuration import parse
from espnet_l0prune.deploy.cut import largest_step
from espnet_l0prune.deploy.verify import Difference, require_equal
from espnet_l0prune.plugin.counting import evaluation, make_budget
from espnet_l0prune.plugin.options import make_goal

RECIPE = Path(__file__).parents[2] / "egs/librispeech"
CONF = RECIPE / "asr1/conf"
SWAP = runpy.run_path(str(RECIPE / "local/yaml_swap.py"))
MODELS = {
    "conformer": (116e6, 83e6),
    "conformer_100": (34e6, 21e6),
    "e_branchformer": (149e6, 115e6),
    "conformer_transducer": (94e6, 83e6),
}
COSTS = {"params": ("params",), "macs": ("macs",), "both": ("params", "macs")}
BUDGETS = {
    f"{share:.0%} {name}": dict.fromkeys(costs, share)
    for share in (0.2, 0.5)
    for name, costs in COSTS.items()
}
# What may differ from the dense training.
PRUNING = {
    "max_epoch", "keep_nbest_models", "best_model_criterion", "encoder", "encoder_conf",
    "model", "model_conf", "optim", "optim_conf", "scheduler_conf",
    "sparsity_constraint", "sparsity_constraint_conf", "sparsity_goal_conf",
    "sparsity_scheduler", "sparsity_scheduler_conf",
}  # fmt: skip
FINETUNING = {"scheduler"} | PRUNING - {
    "keep_nbest_models", "best_model_criterion", "optim", "sparsity_constraint",
    "sparsity_constraint_conf", "sparsity_goal_conf", "sparsity_scheduler",
    "sparsity_scheduler_conf",
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def adopted(request) -> tuple[str, dict[str, dict]]:
    """Configurations of a size: the dense one, and those that `adopt` writes for it."""
    train = CONF / f"train_asr_{request.param}.yaml"
    with tempfile.TemporaryDirectory() as work:  # the weights need not be kept
        return request.param, SWAP["adopt"](train, Path(work))


@pytest.mark.slow
def test_what_pruning_and_fine_tuning_change(adopted):
    """No more than is meant to change, and what the YAML swap shows to a reader."""
    model, conf = adopted
    for kind, allowed in (("prune", PRUNING), ("finetune", FINETUNING)):
        assert SWAP["changes"](conf[kind], conf["dense"]).keys() <= allowed
        for name in ("encoder_conf", "model_conf"):
            assert conf["dense"][name].items() <= conf[kind][name].items()
    if model == "conformer":
        for kind, text in SWAP["swaps"](CONF / "train_asr_conformer.yaml", conf).items():
            assert text == (CONF / f"{kind}_asr_conformer.yaml").read_text()


def build(conf: dict) -> tuple[torch.nn.Module, argparse.Namespace]:
    """A model as ESPnet builds it from what `adopt` wrote, but without its teacher."""
    args = parse(conf)
    args.model_conf = {k: v for k, v in args.model_conf.items() if k not in SWAP["PATHS"]}
    torch.manual_seed(0)
    return ASRTask.build_model(args), args


@torch.no_grad()
def encode(encoder: torch.nn.Module) -> torch.Tensor:
    """Of a second of noise, in float64."""
    feats = torch.randn(1, 100, 80, generator=torch.Generator().manual_seed(0))
    with evaluation(encoder):
        return encoder.double()(feats.double(), torch.tensor([100]))[0]


@pytest.mark.slow
def test_every_budget(adopted):
    model, conf = adopted
    gated, args = build(conf["prune"])
    params, encoder_params = MODELS[model]
    assert count_parameters(gated) == pytest.approx(params, rel=0.02)
    assert count_parameters(gated.encoder) == pytest.approx(encoder_params, rel=0.02)
    for site in gated.encoder.sites():
        for gate in site.gates.values():
            gate.log_alpha.data.normal_()
    budget = make_budget(gated, make_goal(args))
    for name, target in BUDGETS.items():
        args.sparsity_goal_conf["target"] = target
        goal = make_goal(args).targets
        plan = select(budget, goal)
        if name != "50% both" and (model, name) != ("conformer_100", "20% params"):
            continue  # all of them are selected; that these are cut too has to do
        trial = copy.deepcopy(gated)
        counted, trial = make_budget(trial, make_goal(args)), trial.encoder
        sites = trial.sites()
        decide_(sites, plan)
        actual = counted.actual()
        excess = min(actual[cost] - share for cost, share in goal.items())
        assert 0 <= excess <= 0.001 + largest_step(counted, goal)
        promised, masked = counted.remaining("params"), encode(trial)
        cut_(trial, sites, plan)
        assert count_parameters(trial) == pytest.approx(promised, abs=1e-3)
        difference = float((encode(trial) - masked).abs().max() / masked.abs().max())
        require_equal(Difference(difference, 0.0))
        assert trial.structure()

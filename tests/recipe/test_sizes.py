"""The configurations of real size, with random weights: gated, counted, cut, verified.

What they train for weeks on a GPU must not fail at the end of it.
"""

import argparse
import copy
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.core.cutting import cut_
from espnet_l0prune.core.freezing import decide_
from espnet_l0prune.core.selection import select
from espnet_l0prune.core.terms import count_parameters
from espnet_l0prune.deploy.cut import largest_step
from espnet_l0prune.deploy.verify import Difference, require_equal
from espnet_l0prune.plugin.counting import evaluation, make_budget
from espnet_l0prune.plugin.options import make_goal

CONF = Path(__file__).parents[2] / "egs/librispeech/asr1/conf"
MODELS = {
    "conformer": (116e6, 83e6),
    "conformer_100": (34e6, 21e6),
    "e_branchformer": (149e6, 115e6),
    "conformer_transducer": (94e6, 83e6),
}
COSTS = {"params": ("params",), "macs": ("macs",), "both": ("params", "macs")}
BUDGETS = {
    f"{share:.0%} {name}": dict.fromkeys(costs, share)
    for share in (0.2, 0.3, 0.4, 0.5)
    for name, costs in COSTS.items()
}
# What may differ from the dense training.
PRUNING = {
    "max_epoch", "keep_nbest_models", "best_model_criterion", "encoder", "encoder_conf",
    "model", "model_conf", "optim", "optim_conf", "scheduler_conf",
    "sparsity_constraint", "sparsity_goal_conf", "sparsity_scheduler",
    "sparsity_scheduler_conf",
}  # fmt: skip
FINETUNING = PRUNING - {
    "keep_nbest_models", "best_model_criterion", "optim", "sparsity_constraint",
    "sparsity_goal_conf", "sparsity_scheduler", "sparsity_scheduler_conf",
}  # fmt: skip


def read(name: str) -> dict:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


@pytest.mark.parametrize("model", [*MODELS, "mini_an4"])
def test_what_pruning_and_fine_tuning_change(model):
    """No more than is meant to change, and every line of it is marked."""
    dense = read(f"train_asr_{model}")
    for kind, allowed in (("prune", PRUNING), ("finetune", FINETUNING)):
        conf = read(f"{kind}_asr_{model}")
        keys = conf.keys() | dense.keys()
        assert {k for k in keys if conf.get(k) != dense.get(k)} <= allowed
        for name in ("encoder_conf", "model_conf"):
            assert dense[name].items() <= conf[name].items()
        lines = (CONF / f"{kind}_asr_{model}.yaml").read_text().splitlines()
        theirs = (CONF / f"train_asr_{model}.yaml").read_text().splitlines()
        schedule = "sparsity_scheduler_conf:  # <-"
        known = lines.index(schedule) if schedule in lines else len(lines)
        for line in lines[:known]:
            assert line in theirs or "# <-" in line or line.startswith("# "), line


def build(name: str) -> tuple[torch.nn.Module, argparse.Namespace]:
    """A model as ESPnet builds it from a configuration, with 5000 tokens."""
    text = ["--output_dir", "none", "--token_type", "char"]
    args = ASRTask.get_parser().parse_args(
        [*text, "--config", str(CONF / f"{name}.yaml")]
    )
    args.token_list = ["<blank>", "<unk>", *map(str, range(4997)), "<sos/eos>"]
    torch.manual_seed(0)
    return ASRTask.build_model(args), args


@torch.no_grad()
def encode(encoder: torch.nn.Module) -> torch.Tensor:
    """Of a second of noise, in float64."""
    feats = torch.randn(1, 100, 80, generator=torch.Generator().manual_seed(0))
    with evaluation(encoder):
        return encoder.double()(feats.double(), torch.tensor([100]))[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_budget(model):
    gated, args = build(f"prune_asr_{model}")
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
        assert count_parameters(trial) == promised
        difference = float((encode(trial) - masked).abs().max() / masked.abs().max())
        require_equal(Difference(difference, 0.0))
        assert trial.structure()

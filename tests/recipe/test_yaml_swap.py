"""The YAML swaps say what `adopt` makes of the recipe's model."""

import runpy
from pathlib import Path

import pytest
import yaml

RECIPE = Path(__file__).parents[2] / "egs/librispeech"
SWAP = runpy.run_path(str(RECIPE / "local/yaml_swap.py"))
TRAIN = """# Of a test
max_epoch: 3
encoder: conformer
encoder_conf:
    output_size: 8   # narrow
    num_blocks: 2

optim: adam
scheduler_conf:
    warmup_steps: 9
best_model_criterion:
- - valid
  - acc
  - max
"""
PRUNE = """max_epoch: 3
encoder: l0_conformer  # <-
encoder_conf:
    output_size: 8   # narrow
    num_blocks: 4  # <-
    units: [heads]  # <-

optim: adam
scheduler_conf:
    # no warmup_steps  # <-
    warmup_ratio: 0.1  # <-
best_model_criterion: [[valid, loss, min]]  # <-

sparsity_goal_conf:  # <-
    target: {macs: 0.5, params: 0.3}  # <-"""


def test_only_lines_that_change_are_marked():
    dense = yaml.safe_load(TRAIN) | {"seed": 0, "model_conf": {}}
    prune = yaml.safe_load(PRUNE) | {"seed": 0, "init_param": ["/a/model.pth"]}
    prune |= {"model_conf": {"teacher_config": "/a/config.yaml"}}
    changed = SWAP["changes"](prune, dense)
    assert SWAP["swap"](TRAIN, changed) == PRUNE.splitlines()


@pytest.mark.slow
def test_the_swaps_of_the_recipe(tmp_path):
    train = RECIPE / "conf/train_small.yaml"
    for kind, text in SWAP["swaps"](train, SWAP["adopt"](train, tmp_path)).items():
        assert text == (RECIPE / f"conf/{kind}.yaml").read_text()


@pytest.mark.slow
def test_the_demo_is_adopted_with_its_options(tmp_path):
    conf = SWAP["adopt"](RECIPE / "conf/train_mini.yaml", tmp_path)
    assert conf["prune"]["sparsity_goal_conf"]["target"] == {"params": 0.5, "macs": 0.6}
    assert conf["prune"]["sparsity_scheduler_conf"]["ramp_steps"] == 5
    assert (conf["prune"]["max_epoch"], conf["finetune"]["max_epoch"]) == (8, 3)

"""Factors against the closed form of the best approximation."""

import runpy
import sys

import pytest
import svd
import torch
import yaml
from espnet2.tasks.asr import ASRTask
from low_rank import TRAIN_PROGRAM, LowRank, LowRankConformerEncoder, can_factor
from torch import nn

from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import arguments
from espnet_l0prune.testing.runs import CONFIG, data_options, final, make_data

LAYERS = {
    "linear": (nn.Linear(6, 4), (2, 5, 6)),
    "without bias": (nn.Linear(3, 7, bias=False), (2, 3)),
    "pointwise": (nn.Conv1d(5, 8, 1), (2, 5, 9)),
    "strided": (nn.Conv2d(3, 4, 3, stride=2), (2, 3, 9, 8)),
    "padded": (nn.Conv1d(3, 4, 5, padding=2, dilation=2), (2, 3, 11)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_factors_are_the_best_approximation(name):
    """Eckart and Young: what is missing is the root of the sum of the squares of the
    singular values left out; with all of them, nothing is."""
    layer, shape = LAYERS[name]
    layer = layer.double()
    torch.manual_seed(0)
    x, matrix = torch.randn(shape).double(), layer.weight.detach().flatten(1)
    values = torch.linalg.svdvals(matrix)
    for rank in range(1, min(matrix.shape) + 1):
        pair = LowRank(layer, rank).double()
        svd.fill_(pair, layer)
        first, second = (
            part.weight.detach().flatten(1) for part in (pair.first, pair.second)
        )
        missing = (second @ first - matrix).norm()
        assert float(missing) == pytest.approx(
            float(values[rank:].square().sum().sqrt()), abs=1e-9
        )
        assert pair(x).shape == layer(x).shape
    torch.testing.assert_close(pair(x), layer(x))


def test_what_is_one_matrix():
    assert can_factor(nn.Linear(2, 2))
    assert can_factor(nn.Conv1d(4, 4, 3))
    assert not can_factor(nn.Conv1d(4, 4, 3, groups=4))
    assert not can_factor(nn.LayerNorm(4))
    assert not can_factor(None)


@pytest.mark.parametrize("target", [{"params": 0.3}, {"params": 0.4, "macs": 0.4}])
def test_a_dense_experiment_in_factors(target, tmp_path):
    heard = {"frontend": "default", "input_size": None}
    dense = save_experiment(tmp_path / "dense", **heard)
    ranks = svd.factorize(tmp_path / "dense", "model.pth", target, tmp_path / "a/b.pth")
    args = arguments(encoder="low_rank_conformer", model="espnet", **heard)
    args.encoder_conf["ranks"] = ranks
    small = ASRTask.build_model(args)
    small.load_state_dict(torch.load(tmp_path / "a/b.pth", weights_only=True))
    shares = [
        1 - f(small, 16_000) / f(dense, 16_000)
        for c, f in svd.COUNTS.items()
        if c in target
    ]
    excess = [found - goal for found, goal in zip(shares, target.values(), strict=True)]
    assert 0 <= min(excess) < 0.05  # and the other cost may be beyond its target
    # no direction that is left out is worth more than one that is kept
    worth, kept, gone = svd.energies(dense.encoder), [], []
    for path, values in worth.items():
        m, n = svd.as_matrix(dense.encoder.get_submodule(path)).shape
        if path in ranks:
            assert ranks[path] * (m + n) < m * n
            kept += values[1 : ranks[path]].tolist()  # the first stays in any case
            gone += values[ranks[path] :].tolist()
    assert min(kept) >= max(gone)
    # what is no factor is as it was
    path = "encoder.after_norm.weight"
    assert torch.equal(small.state_dict()[path], dense.state_dict()[path])


def test_more_than_all_factors_can_give_is_refused(tmp_path):
    save_experiment(tmp_path / "dense")
    with pytest.raises(ValueError, match="beyond what rank 1 everywhere leaves"):
        svd.factorize(tmp_path / "dense", "model.pth", {"params": 0.99}, tmp_path / "b")


def test_another_encoder_is_refused(tmp_path):
    save_experiment(tmp_path / "dense", encoder="l0_conformer")
    with pytest.raises(ValueError, match="encoder: l0_conformer; expected conformer"):
        svd.factorize(tmp_path / "dense", "model.pth", {"params": 0.5}, tmp_path / "b")


@pytest.mark.parametrize(
    "ranks", [{"encoders.0.nothing": 2}, {"after_norm": 2}, {"embed.out.0": 0}]
)
def test_ranks_that_make_no_sense(ranks):
    with pytest.raises(ValueError, match="expected the path of a linear layer"):
        LowRankConformerEncoder(20, 16, ranks=ranks)


def test_factors_are_trained_by_a_program_that_knows_them(tmp_path, monkeypatch):
    """With the dense model as teacher."""
    make_data(tmp_path)
    save_experiment(tmp_path / "dense")
    begin, out = tmp_path / "begin.pth", tmp_path / "out"
    ranks = svd.factorize(tmp_path / "dense", "model.pth", {"params": 0.3}, begin)
    conf = {k: v for k, v in CONFIG.items() if not k.startswith("sparsity")}
    conf |= {
        "encoder": "low_rank_conformer",
        "optim": "adamw",
        "optim_conf": {"lr": 1e-3},
    }
    conf["encoder_conf"] = {**conf["encoder_conf"], "ranks": ranks}
    conf["model_conf"] = {
        **conf["model_conf"],
        "teacher_config": str(tmp_path / "dense/config.yaml"),
        "teacher_model_file": str(tmp_path / "dense/model.pth"),
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(conf))
    python, program = TRAIN_PROGRAM.split()
    assert python == "python3"
    words = ["--config", str(tmp_path / "train.yaml"), "--init_param", str(begin)]
    words += ["--output_dir", str(out), "--max_epoch", "1", *data_options(tmp_path)]
    monkeypatch.setattr(sys, "argv", [program, *words])
    runpy.run_path(program, run_name="__main__")
    trained, before = final(out)["model"], torch.load(begin)
    for path in ranks:
        name = f"encoder.{path}.first.weight"
        assert 0 < (trained[name] - before[name]).abs().max() < 0.1

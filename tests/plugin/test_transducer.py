"""Transducers, where the package is missing that ESPnet takes their loss from."""

import argparse
import copy
import importlib.util
import sys

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main
from espnet_l0prune.plugin.building import build_model
from espnet_l0prune.plugin.transducer import PACKAGE
from espnet_l0prune.testing.models import arguments
from espnet_l0prune.testing.updates import batch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is not None, reason=f"{PACKAGE} is installed"
)


def transducer(**changes) -> argparse.Namespace:
    args = arguments(decoder="transducer", **changes)
    args.decoder_conf, args.joint_net_conf = {"hidden_size": 8}, {"joint_space_size": 8}
    return args


def test_a_dense_one_is_adopted(tmp_path):
    args = transducer(encoder="conformer", model="espnet", optim="adamw")
    with pytest.raises(ModuleNotFoundError, match=PACKAGE):
        ASRTask.build_model(copy.deepcopy(args))
    dense = build_model(args)
    assert PACKAGE not in sys.modules
    (tmp_path / "dense").mkdir()
    torch.save(dense.state_dict(), tmp_path / "dense/model.pth")
    (tmp_path / "dense/config.yaml").write_text(yaml.safe_dump(vars(args)))
    command = ["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]
    assert main(command) == 0


def test_one_of_the_slu_task_learns():
    SLUTask = pytest.importorskip("espnet2.tasks.slu").SLUTask
    args = SLUTask.get_parser().parse_args(["--output_dir", "x", "--token_type", "char"])
    for name, value in vars(transducer()).items():
        if hasattr(args, name):
            setattr(args, name, value)
    net = SLUTask.build_model(args)
    loss, stats, _ = net(**batch())
    loss.backward()
    assert torch.isfinite(loss)
    assert stats["loss_transducer"] > 0
    assert all(p.grad.isfinite().all() for p in net.decoder.parameters())


def test_multi_blanks_need_a_gpu(tmp_path, capsys):
    conf = {"transducer_multi_blank_durations": [2, 3]}
    args = transducer(encoder="conformer", model="espnet", model_conf=conf)
    (tmp_path / "dense").mkdir()
    command = ["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]
    (tmp_path / "dense/config.yaml").write_text(yaml.safe_dump(vars(args)))
    assert main(command) == 1
    assert "the loss of multi-blank transducers has no code" in capsys.readouterr().err

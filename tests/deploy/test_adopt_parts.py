"""What a training would refuse, `adopt` refuses before it writes, or it leaves it out."""

import re
import shlex
import shutil

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.tasks.s2t import S2TTask
from espnet2.tasks.slu import SLUTask

from espnet_l0prune.cli import main
from espnet_l0prune.deploy.choice import APPENDED
from espnet_l0prune.deploy.verify import outputs
from espnet_l0prune.plugin.building import TASKS, task_name
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.models import arguments, model
from espnet_l0prune.testing.runs import data_options, make_data
from tests.deploy.test_older_espnet import MACHINE

S4 = {
    "n_layers": 1,
    "residual": "residual",
    "norm": "layer",
    "layer": [
        {"_name_": "s4", "postact": "glu", "measure": "legs"},
        {"_name_": "mha", "n_head": 2},
    ],
}


def change(folder, **changes) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_adapter": True}, "merge them into the weights of the layers first"),
        ({"train_dtype": "float16"}, "train_dtype is float16; pruning expects"),
    ],
)
def test_it_refuses_what_a_training_would(changes, message, tmp_path, capsys):
    save_experiment(tmp_path / "dense")
    change(tmp_path / "dense", **changes)
    assert main(["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "l0").exists()


def adopt_with(tmp_path, *more: str) -> int:
    out = str(tmp_path / "l0")
    return main(["adopt", str(tmp_path / "dense"), "--out", out, *more])


def test_options_that_are_set(tmp_path):
    """One by one in mappings; in the one file or in the other."""
    save_experiment(tmp_path / "dense", optim_conf={"lr": 0.001, "weight_decay": 0.01})
    settings = "encoder_conf.round_to=2", "optim_conf.gate_lr=0.05", "accum_grad=3"
    more = [word for text in settings for word in ("--set", text)]
    assert adopt_with(tmp_path, *more, "--set_finetune", "optim_conf.lr=0.1") == 0
    prune, finetune = (
        yaml.safe_load((tmp_path / f"l0/{name}.yaml").read_text())
        for name in ("prune", "finetune")
    )
    assert prune["encoder_conf"]["round_to"] == 2
    assert prune["encoder_conf"]["units"] == "default"
    assert prune["optim_conf"] == {"lr": 0.001, "weight_decay": 0.01, "gate_lr": 0.05}
    assert finetune["optim_conf"] == {"lr": 0.1, "weight_decay": 0.01}
    assert (prune["accum_grad"], finetune["accum_grad"]) == (3, 1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optim_conf.gate_lr=-1", "gate_lr is -1; expected a number in"),
        ("optim_conf.gate_rl=1", "unknown option 'gate_rl'; did you mean 'gate_lr'"),
        ("encoderr=1", "ESPnet would not train with this: .*encoderr"),
    ],
)
def test_options_that_nobody_has(option, message, tmp_path, capsys):
    save_experiment(tmp_path / "dense")
    assert adopt_with(tmp_path, "--set", option) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "l0").exists()


@pytest.mark.parametrize("text", ["lr", "=1", "optim_conf.=1", "lr={"])
def test_settings_that_are_none(text, tmp_path, capsys):
    with pytest.raises(SystemExit):
        adopt_with(tmp_path, "--set", text)
    assert f"{text!r} is none of KEY=VALUE" in capsys.readouterr().err


def test_adapters_are_refused_by_the_other_commands_too(tmp_path, capsys):
    save_experiment(tmp_path / "dense")
    change(tmp_path / "dense", use_adapter=True)
    for command in ("inspect", str(tmp_path / "dense")), (
        "cut", str(tmp_path / "dense"), "--out", str(tmp_path / "cut"),
        "--checkpoint", "model.pth",
    ):  # fmt: skip
        assert main([*command]) == 1
        assert "use_adapter is true: part of what" in capsys.readouterr().err


def test_a_training_with_adapters_is_refused_before_its_first_update():
    args = arguments(use_adapter=True)
    with pytest.raises(ValueError, match="use_adapter is true"):
        ASRTask.build_optimizers(args, model())


def test_what_pruning_does_without_is_left_out(tmp_path, capsys):
    frozen = ["encoder.encoders.0", "encoder.after_norm", "ctc"]
    save_experiment(
        tmp_path / "dense", **MACHINE, use_deepspeed=True, freeze_param=frozen
    )
    make_data(tmp_path)
    command = ["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]
    assert main([*command, "--epochs", "4"]) == 0
    said = capsys.readouterr().out
    assert "use_deepspeed is left out" in said
    assert "freeze_param: encoder.encoders.0 is left out" in said
    train = shlex.split(said.split("Next:\n")[1].splitlines()[0])[3:]
    more = ["--batch_type", "unsorted", "--batch_size", "4", *data_options(tmp_path)]
    ASRTask.main(cmd=[*train, *more])
    config = yaml.safe_load((tmp_path / "l0/pruned/config.yaml").read_text())
    assert config["freeze_param"] == frozen[1:]


def test_a_colon_in_a_path(tmp_path, capsys):
    dense = tmp_path / "2024-01-01_12:30:05"
    save_experiment(dense, **MACHINE)
    make_data(tmp_path)
    command = ["adopt", str(dense), "--epochs", "4", "--out"]
    assert main([*command, str(tmp_path / "12:30")]) == 1
    assert "has a colon, where ESPnet's --init_param ends" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "l0")]) == 0
    train = ["--config", str(tmp_path / "l0/prune.yaml"), "--output_dir"]
    more = ["--batch_type", "unsorted", "--batch_size", "4", *data_options(tmp_path)]
    ASRTask.main(cmd=[*train, str(tmp_path / "l0/pruned"), *more])
    assert (tmp_path / "l0/pruned/4epoch.pth").exists()


@pytest.mark.parametrize(
    "name", ["mt", "st", "lm", "enh_s2t", "asr_transducer", "s2t_ctc"]
)
def test_other_tasks_are_told_by_name(name, tmp_path, capsys):
    """By what their own parsers write."""
    module = pytest.importorskip(f"espnet2.tasks.{name}")
    classes = (value for value in vars(module).values() if isinstance(value, type))
    (task,) = (c for c in classes if c.__module__ == module.__name__)
    args = task.get_parser().parse_args(["--output_dir", "none"])
    assert task_name(args) == name
    if name in TASKS:
        return
    save_experiment(tmp_path)
    text = yaml.safe_dump({**vars(args), "token_list": ["a"]})
    (tmp_path / "config.yaml").write_text(text)
    assert main(["adopt", str(tmp_path), "--out", str(tmp_path / "l0")]) == 1
    assert f"is of ESPnet's {name} task" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 1
    if name != "st":
        assert f"is of ESPnet's {name} task" in capsys.readouterr().err


def test_a_decoder_that_is_not_cut_need_not_compute_in_float64():
    args = arguments(decoder="s4")
    args.decoder_conf = S4
    net = ASRTask.build_model(args)
    assert {*outputs(net)[torch.float64]} == {"encoder"}


@pytest.mark.parametrize("task", [ASRTask, S2TTask, SLUTask])
def test_no_data_drops_whatever_a_recipe_would_add_to(task):
    """ESPnet's parser itself says which lists grow by what the command line has."""
    actions = task.get_parser()._actions
    assert {a.dest for a in actions if type(a).__name__ == "_AppendAction"} == {*APPENDED}


def test_the_pace_of_a_schedule_in_updates(tmp_path, capsys):
    """No epoch's length is needed, and more epochs make no phase longer."""
    save_experiment(tmp_path / "dense")
    lengths = {"in_epochs": False, "warmup_steps": 1, "ramp_steps": 30, "hold_steps": 9}
    words = [f"sparsity_scheduler_conf.{k}={v}" for k, v in lengths.items()]
    words.append("sparsity_constraint=lagrangian")
    more = [word for text in words for word in ("--set", text)]
    assert adopt_with(tmp_path, *more) == 0
    notes = capsys.readouterr().out.split("Next:")[0]
    assert "The gates train for 39 updates" in notes
    assert "--epochs" not in notes
    shutil.rmtree(tmp_path / "l0")
    assert adopt_with(tmp_path, *more, "--set", "optim_conf.gate_lr=0.3") == 0
    assert "The gates train" not in capsys.readouterr().out

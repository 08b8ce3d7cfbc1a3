"""Stock ESPnet knows our names, in every way that it is started."""

import argparse
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank import RNNTLossNumba
from espnet2.tasks import abs_task
from espnet2.tasks.asr import ASRTask, encoder_choices, model_choices

from espnet_l0prune.deploy.card import WHEEL
from espnet_l0prune.plugin import register as plugin
from espnet_l0prune.plugin.model import L0Distilled
from espnet_l0prune.plugin.network import L0ConformerEncoder
from espnet_l0prune.testing.models import arguments

ROOT = Path(__file__).parents[2]
ASK = (
    "import espnet2.tasks.asr as asr; "
    "print('KNOWN', 'l0_conformer' in asr.encoder_choices.classes)"
)


def python(*args: str) -> str:
    result = subprocess.run(
        [sys.executable, *args], capture_output=True, text=True, cwd="/"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_names_and_second_registration():
    before = len(ASRTask.class_choices_list), ASRTask.build_model
    plugin.register()
    plugin.register()
    assert (len(ASRTask.class_choices_list), ASRTask.build_model) == before
    assert encoder_choices.get_class("l0_conformer") is L0ConformerEncoder
    assert "l0_distill" in model_choices.choices()
    assert "l0_adamw" in abs_task.optim_classes
    help_text = "".join(ASRTask.get_parser().format_help().split())
    for option in (
        "--sparsity_scheduler{constant,linear,cubic,cosine,exponential,staircase,None}",
        "--sparsity_constraint{projected,lagrangian,inequality,nupi,penalty,"
        "controlled_l2,None}",
    ):
        assert option in help_text


@pytest.mark.parametrize("name", ["l0_conformer", "l0_distill"])
def test_a_taken_name_is_an_error_that_changes_nothing(name, monkeypatch):
    registries = encoder_choices.classes, model_choices.classes, abs_task.optim_classes
    for registry in registries:
        for ours in [key for key in registry if key.startswith("l0_")]:
            monkeypatch.delitem(registry, ours)
    taken = encoder_choices if name == "l0_conformer" else model_choices
    monkeypatch.setitem(taken.classes, name, int)
    before = [dict(registry) for registry in registries]
    with pytest.raises(RuntimeError, match=f"'{name}' is already taken"):
        plugin.register()
    assert [dict(registry) for registry in registries] == before


@pytest.mark.slow
def test_where_we_cannot_register_espnet_goes_on_and_one_sentence_says_why(tmp_path):
    """In an ESPnet without a module that we need: here, in a task that is imported later,
    and in a worker, which starts without us. Our own commands name it too."""
    script = tmp_path / "spawn.py"
    script.write_text(
        "import multiprocessing, sys\n"
        f"sys.modules['{RNNTLossNumba.__module__}'] = None\n"
        "def work():\n    print('KNOWN', 'espnet_l0prune' in sys.modules)\n"
        "if __name__ == '__main__':\n"
        f"    {ASK}\n"
        "    import espnet2.tasks.slu\n"
        "    p = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    p.start(); p.join()\n"
        "    from espnet_l0prune.cli import main\n"
        "    print('EXIT', main(['inspect', '.']))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line[:4] in ("KNOW", "EXIT")]
    assert found == ["KNOWN False", "KNOWN False", "EXIT 1"]
    said = [line for line in done.stderr.splitlines() if "l0prune" in line]
    aside, command = said
    reason = f"import of {RNNTLossNumba.__module__} halted"
    assert aside.startswith("espnet_l0prune stands aside: it cannot register with ESPnet")
    assert f"(ModuleNotFoundError: {reason}" in aside
    assert aside.endswith("; see `espnet-l0prune doctor`")
    assert command.startswith(
        f"espnet-l0prune inspect: this ESPnet cannot be used: {reason}"
    )


def test_print_config_lists_our_options_and_espnets(monkeypatch):
    words = [
        "--encoder", "l0_conformer", "--model", "l0_distill", "--optim", "l0_adamw",
        "--sparsity_scheduler", "linear", "--sparsity_constraint", "nupi",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["asr_train", *words])  # which is what ESPnet reads
    ASRTask.print_config(file := io.StringIO())
    for option in (
        "units", "open_probability", "cnn_module_kernel", "teacher_config",
        "ctc_weight", "gate_lr", "ramp_steps", "multiplier_lr", "kp",
    ):  # fmt: skip
        assert f"    {option}:" in file.getvalue(), option


def test_espnet_ez_builds_and_connects_our_classes():
    ez = pytest.importorskip("espnetez.task", reason="ESPnet has it up to 202511")
    task, args = ez.get_ez_task("asr"), arguments(sparsity_scheduler="linear")
    model = task.build_model(args)
    (optimizer,) = task.build_optimizers(args, model)
    assert isinstance(model, L0Distilled)
    assert model.controller.optimizer is optimizer
    assert model.controller.phase == "warmup"


@pytest.mark.slow
def test_spawned_workers_know_the_names(tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(
        "import multiprocessing\n"
        f"def work():\n    {ASK}\n"
        "if __name__ == '__main__':\n"
        "    p = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    p.start(); p.join()\n"
    )
    assert "KNOWN True" in python(str(script))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """What `make dist` writes, in a copy of the source; pip needs no network for it."""
    source = tmp_path_factory.mktemp("dist") / "source"
    skipped = ".*", "build", "dist", "docs", "egs", "exp*", "tests", "*.egg-info"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*skipped))
    made = subprocess.run(
        ["make", "--no-print-directory", "dist", f"PYTHON={sys.executable}"],
        cwd=source,
        env={**os.environ, "PIP_NO_BUILD_ISOLATION": "false"},  # means true
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return source / made.stdout.splitlines()[-1]


def test_the_wheel_carries_the_autoload_file(wheel, tmp_path):
    """pip owns the .pth, so that uninstalling removes it; elsewhere it starts us."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (record,) = (n for n in names if n.endswith("RECORD"))
        assert "espnet_l0prune.pth," in archive.read(record).decode()
        archive.extractall(site)
    assert {"espnet_l0prune.pth", "espnet_l0prune/report/templates/page.html"} <= {*names}
    code = f"import site, sys; site.addsitedir({str(site)!r}); print(*sys.modules)"
    modules = python("-I", "-S", "-c", code).split()
    assert "espnet_l0prune" in modules
    assert "torch" not in modules
    off = python("-I", "-S", "-c", code.replace("import site", "import os; os.environ"
                 "['ESPNET_L0PRUNE_AUTOLOAD'] = '0'; import site"))  # fmt: skip
    assert "espnet_l0prune" not in off.split()


def test_the_wheel_is_what_all_texts_ask_for(wheel):
    """None asks a registry for a package that it does not have."""
    assert wheel.name == WHEEL
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.*"), *ROOT.glob("egs/**/*.*")]
    texts += [*ROOT.glob("espnet_l0prune/**/*.py"), ROOT / "setup.py"]
    asked = [
        found
        for path in texts
        if path.suffix in (".md", ".py", ".sh", ".ipynb")
        for found in re.findall(r"pip install[^`\n]*", path.read_text("utf-8"))
    ]
    ours = [line for line in asked if "espnet_l0prune" in line]
    assert len(ours) >= 2
    assert all(WHEEL in line for line in ours)


def test_pip_has_no_reason_to_touch_espnet_or_torch(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
        lines = archive.read(name).decode().splitlines()
    needed = [line.split()[1] for line in lines if line.startswith("Requires-Dist:")]
    always = [line for line in lines if line.startswith("Requires-Dist:")]
    always = [line for line in always if "extra ==" not in line]
    names = {re.match(r"[\w-]+", line.split()[1])[0] for line in always}
    small = {"matplotlib", "packaging", "pyyaml", "rich", "sentencepiece", "shtab"}
    small |= {"docstring_parser", "jinja2"}
    others = {"editdistance", "tensorboard", "typeguard"}  # see setup.py
    assert {name.lower() for name in names} == small | others
    optional = {re.match(r"[\w-]+", requirement)[0] for requirement in needed}
    assert {"espnet", "torch", "torchaudio"} <= optional


def test_trainings_of_other_models_are_left_alone():
    """S2ST inherits ST's task: its models have no `decoder`."""
    module = importlib.import_module("espnet2.tasks.s2st")
    model = torch.nn.Module()
    model.encoder = torch.nn.Linear(2, 2)
    args = argparse.Namespace(
        **{
            "optim": "sgd",
            "optim_conf": {},
            "sharded_ddp": False,
            "collect_stats": False,
        },
        **{"exclude_weight_decay": False, "exclude_weight_decay_conf": {}},
    )
    (optimizer,) = module.S2STTask.build_optimizers(args, model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert not hasattr(model.encoder, "input_size")

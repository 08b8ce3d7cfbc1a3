"""Several networks come from one pruning: from `adopt` to the fine-tuning of each."""

import html
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from espnet_l0prune.cli import main
from espnet_l0prune.deploy.commands import commands, script
from espnet_l0prune.plugin.counting import sites_of
from espnet_l0prune.plugin.experiment import load_experiment
from espnet_l0prune.plugin.schema import schema
from espnet_l0prune.testing.experiments import save_experiment
from espnet_l0prune.testing.runs import make_data, run
from tests.deploy.test_adopt import ENCODERS, STOCK, adopt, follow

SHARES = 0.2, 0.35
MORE = "--params", "0.5", "--macs", "0.4", "--milestones", "0.2", "0.35"


def read(file) -> dict:
    return yaml.safe_load(file.read_text())


@pytest.mark.slow
def test_from_a_dense_experiment_to_several_small_ones(tmp_path, capsys):
    make_data(tmp_path)
    dense, out = tmp_path / "dense", tmp_path / "l0"
    conf = {"encoder": "conformer", "encoder_conf": ENCODERS["conformer"]}
    run(tmp_path, dense, **conf, **STOCK)
    *lines, all_of_these = adopt(dense, out, capsys, *MORE, "--epochs", "10")
    assert all_of_these == f"All of these: sh {out / 'run.sh'}"
    follow(lines, "asr")
    sizes = []
    for share in (None, *reversed(SHARES)):
        end = "" if share is None else f"_{share}"
        cut = read(out / f"cut{end}/cut.json")
        goal = {"params": share or 0.5, "macs": 0.4 * (share or 0.5) / 0.5}
        assert cut["target"] == pytest.approx(goal)
        for cost, target in goal.items():
            assert -0.005 <= cut["sparsity"][cost] - target <= 0.05  # units are large
        assert cut["difference"]["float64"] <= 1e-10
        model, _ = load_experiment(out / f"finetuned{end}", "valid.acc.ave.pth")
        assert not any(site.gates for site in sites_of(model))
        sizes.append(sum(p.numel() for p in model.parameters()))
        assert sizes[-1] == cut["model_parameters"][1]
    assert sizes == sorted(sizes)

    # the script goes on where it stopped, and all is done
    (out / "cut_0.2/cut.json").unlink()  # which a second cut would write again
    command = ["sh", str(out / "run.sh"), "--log_level", "WARNING"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert not (out / "cut_0.2/cut.json").exists()
    called = re.findall(r"asr_train\S* .*--output_dir (\S+) --log_level", done.stderr)
    expected = ["pruned", "finetuned", "finetuned_0.2", "finetuned_0.35"]
    assert [Path(folder).name for folder in called] == expected

    # and the report has a curve through them
    page = tmp_path / "page"
    assert main(["report", str(dense), str(out), "--out", str(page)]) == 0
    text = (page / "index.html").read_text()
    for cost in ("params", "macs"):
        assert f'<figure id="validation_{cost}">' in text
    assert "of the best epoch's validation, against parameters" in html.unescape(text)


def test_what_is_written(tmp_path, capsys):
    shape = tmp_path / "shape"
    shape.write_text("".join(f"u{i} {50 + i},20\n" for i in range(16)))
    batches = {"batch_type": "unsorted", "batch_size": 2, "accum_grad": 2}
    dense, out = tmp_path / "dense", tmp_path / "l0"
    save_experiment(dense, **batches, train_shape_file=[str(shape)])
    assert main(["adopt", str(dense), "--out", str(out), *MORE]) == 0
    said = capsys.readouterr().out
    # an epoch has 4 updates; of 13 epochs and a quarter more, 17
    assert "dense for 2 updates, loses units for 34, keeps its size while the" in said
    assert "It also keeps its size for 7 updates at each milestone, and a net" in said
    assert "The target in params is 20, 35 and 50% after 16, 33 and 50 updates." in said
    assert "The target in macs is 16, 28 and 40% after 16, 33 and 50 updates." in said
    prune = read(out / "prune.yaml")
    assert prune["max_epoch"] == 17
    schedule = prune["sparsity_scheduler_conf"]
    assert schedule["milestones"] == [0.2, 0.35, 0.5]
    assert not [*jsonschema.Draft202012Validator(schema()).iter_errors(prune)]
    one, other = (read(out / f"finetune{end}.yaml") for end in ("", "_0.35"))
    assert other.pop("init_param") == [str(out / "cut_0.35/model.pth")]
    structure = other["encoder_conf"].pop("structure")
    assert structure == str(out / "cut_0.35/structure.yaml")
    del one["init_param"], one["encoder_conf"]["structure"]
    assert one == other

    shape.unlink()  # the same, where the length of an epoch is not known
    where = tmp_path / "in_epochs"
    assert main(["adopt", str(dense), "--out", str(where), *MORE]) == 0
    said = capsys.readouterr().out
    assert "The target in params is 20, 35 and 50% after 3.97, 8.22 and 12.47 ep" in said
    # none, and there is neither script nor another fine-tuning
    assert main(["adopt", str(dense), "--out", str(tmp_path / "one")]) == 0
    assert "All of these" not in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"prune.yaml", "finetune.yaml"}


REFUSED = [
    (
        "0.3 0.2",
        "--milestones is [0.3, 0.2]; expected a list of rising numbers in (0, 1)",
    ),
    ("0 0.2", "--milestones is [0.0, 0.2]; expected a list of rising"),
    ("nan", "--milestones is [nan]; expected a list of rising"),
    ("0.2 0.6", "--milestones is [0.2, 0.6]; expected each to be below the target"),
    ("0.5", "--milestones is [0.5]; expected each to be below the target"),
    ("0.0001", "the target sparsity in params is 0.0001, but the gates' expected"),
    ("0.3 0.31", "the milestone 0.31 has 5 updates, ramp and hold, and to close a gate"),
]


@pytest.mark.parametrize(("milestones", "message"), REFUSED)
def test_milestones_that_are_refused(milestones, message, tmp_path, capsys):
    shape = tmp_path / "shape"
    shape.write_text("".join(f"u{i} {50 + i},20\n" for i in range(12)))
    batches = {"batch_type": "unsorted", "batch_size": 2, "accum_grad": 2}
    save_experiment(tmp_path / "dense", **batches, train_shape_file=[str(shape)])
    command = ["adopt", str(tmp_path / "dense"), "--out", str(tmp_path / "l0")]
    command += ["--params", "0.5", "--epochs", "12", "--milestones"]
    assert main([*command, *milestones.split()]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "l0").exists()


def test_the_script_quotes_and_passes_options_on(tmp_path):
    """It is run, with commands that say what they are called with."""
    out = tmp_path / "an l0 one"
    (out / "cut_0.3").mkdir(parents=True)
    for name in ("python", "espnet-l0prune"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text('#!/bin/sh\nfor word in "$0" "$@"; do echo "$word"; done\n')
        program.chmod(0o755)
    lines = commands("asr", 0, out, [0.3])
    assert len(lines) == 5
    (tmp_path / "run.sh").write_text(script(lines))
    said = subprocess.run(
        ["sh", str(tmp_path / "run.sh"), "--seed", "1 2"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
    ).stdout.splitlines()
    expected = []
    for line in (*lines[:3], lines[4]):  # the milestone has been cut already
        name, *words = shlex.split(line)
        more = ["--seed", "1 2"] if name == "python" else []
        expected += [str(tmp_path / "bin" / name), *words, *more]
    assert said == expected

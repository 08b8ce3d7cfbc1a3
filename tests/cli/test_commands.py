"""The command line: what machines and people get, and how mistakes end."""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from espnet_l0prune.cli import disable, enable, main
from espnet_l0prune.cli.parser import get_parser
from espnet_l0prune.testing.experiments import save_experiment

HEARD = {"frontend": "default", "input_size": None}
NAMES = [
    "doctor", "inspect", "profile", "probe", "adopt", "cut", "verify", "bench", "export",
    "card", "report", "schema", "completion", "enable", "disable",
]  # fmt: skip


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exp") / "asr_dense"
    save_experiment(folder, **HEARD)
    return folder


def subparsers() -> dict:
    (action,) = (a for a in get_parser()._actions if a.dest == "command")
    return action.choices


def test_each_command_has_an_example():
    assert [*subparsers()] == NAMES
    for name, parser in subparsers().items():
        words = parser.epilog.removeprefix("example: espnet-l0prune ").split(" > ")[0]
        args = get_parser().parse_args(words.split())
        assert args.command == name
        for action in parser._actions:
            assert action.help or action.choices, f"{name} {action.dest}"


def test_help_and_errors_at_the_prompt():
    command = [sys.executable, "-m", "espnet_l0prune"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"    {name} " in done.stdout for name in NAMES)
    assert "0 done; 1 something to mend" in done.stdout
    done = subprocess.run([*command, "cut"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "the following arguments are required" in done.stderr


@pytest.mark.slow
def test_json_is_clean_whatever_is_printed(dense):
    """In a process of its own: ESPnet prints at import."""
    command = [sys.executable, "-m", "espnet_l0prune", "inspect", str(dense), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "NLTK_DATA": "/none"}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    parameters = [row["amounts"]["params"] for row in found["rows"]]
    assert found["amounts"]["params"]["model"] == sum(parameters)


def test_json_of_every_command(dense, tmp_path, capsys, monkeypatch):
    for command in (enable, disable):
        monkeypatch.setattr(command, "autoload_file", lambda: tmp_path / "a.pth")
    zipped, card = str(tmp_path / "m.zip"), str(tmp_path / "README.md")
    asked = {
        "bench": ([dense, "--seconds", "1", "--rounds", "1"], "rows"),
        "adopt": ([dense, "--out", tmp_path / "l0", "--no_data"], "commands"),
        "export": (["plugin", dense, "--out", zipped], "bytes"),
        "card": ([dense, "--out", card], "out"),
        "report": ([dense, "--out", tmp_path / "page"], "page"),
        "schema": ([], "properties"),
        "completion": (["bash"], "script"),
        "enable": ([], "enabled"),
        "disable": ([], "disabled"),
    }
    for name, (words, key) in asked.items():
        assert main([name, *map(str, words), "--json"]) == 0, name
        assert json.loads(capsys.readouterr().out)[key], name


def test_long_commands_say_what_they_do(dense, tmp_path, capsys):
    """In a file of messages too, and apart from the answer."""
    for words, steps in (
        (["adopt", dense, "--out", tmp_path / "l0"], ("loading", "building", "comput")),
        (["export", "plugin", dense, "--out", tmp_path / "m.zip"], ("load", "packing")),
    ):
        assert main([*map(str, words), "--json"]) == 0
        seen = capsys.readouterr()
        json.loads(seen.out)
        lines = seen.err.splitlines()
        assert all(re.match(rf"{words[0]}, \d+ s: \w", line) for line in lines), lines
        assert re.search(r" MB of weights, about [\d,]+ s in all", lines[0])
        for step in steps:
            assert any(f"s: {step}" in line for line in lines), step


def test_bench_and_card_for_people(dense, tmp_path, capsys):
    words = ["bench", str(dense), str(dense.parent / "asr_dense"), "--rounds", "1"]
    assert main([*words, "--seconds", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "1.00x" in out
    assert "0.5 s of audio" in out
    assert main(["bench", str(dense), "--rounds", "0"]) == 1
    assert "--rounds is 0; expected a whole number in [1, " in capsys.readouterr().err
    assert main(["bench", str(dense), "--seconds", "inf"]) == 1
    assert "--seconds is inf; expected a number in (0, 3600]" in capsys.readouterr().err
    assert main(["bench", str(dense), "--seconds", "0.03"]) == 1
    assert "the audio is too short" in capsys.readouterr().err
    card = tmp_path / "README.md"
    assert main(["card", str(dense), "--out", str(card), "--name", "me/it"]) == 0
    assert "# me/it" in card.read_text()
    assert "Dense beside pruned" in card.read_text()
    assert main(["card", str(dense), "--out", str(card)]) == 1
    assert "exists; choose another --out, or give --force" in capsys.readouterr().err


def test_the_card_counts_at_the_models_rate(tmp_path):
    conf = {"fs": 8000, "n_fft": 256, "hop_length": 64, "n_mels": 20}
    save_experiment(tmp_path / "exp", **HEARD, frontend_conf=conf)
    card = tmp_path / "README.md"
    assert main(["card", str(tmp_path / "exp"), "--out", str(card)]) == 0
    (line,) = (x for x in card.read_text().splitlines() if "MACs of the encoder" in x)
    _, _, dense, pruned, change, _ = line.split("|")
    assert dense == pruned
    assert change.strip() == "+0.0%"


def test_what_bench_and_card_refuse(dense, tmp_path, capsys):
    save_experiment(tmp_path / "slow", **HEARD, frontend_conf={"fs": 8000})
    assert main(["bench", str(dense), str(tmp_path / "slow")]) == 1
    assert "expected the same of all: time them apart" in capsys.readouterr().err
    save_experiment(tmp_path / "gated", encoder="l0_conformer")
    command = ["card", str(tmp_path / "gated"), "--out", str(tmp_path / "README.md")]
    assert main(command) == 1
    assert "has gates; expected a model that was cut" in capsys.readouterr().err
    assert not (tmp_path / "README.md").exists()


def on_a_terminal(*words: object) -> str:
    """What a command writes to a terminal of 80 columns, in a copy of this process, which
    has imported ESPnet."""
    child, terminal = pty.fork()
    if not child:
        os.environ |= {"COLUMNS": "80", "TERM": "xterm"}
        sys.stdout, sys.stderr = (os.fdopen(n, "w") for n in (1, 2))
        code = -1
        try:
            code = main([str(word) for word in words])
        finally:
            os._exit(code)
    seen = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(terminal, 4096):
            seen += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, seen
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen.decode())  # no colours


def test_a_terminal_of_80_columns_shows_all_of_a_table(dense, tmp_path):
    folder = tmp_path / "run[lr0.1]"  # no markup
    shutil.copytree(dense, folder)
    seen = on_a_terminal("inspect", folder)
    assert "run[lr0.1]/model.pth" in seen
    table = seen[seen.index("run[lr0.1]/model.pth") :]
    assert "…" not in table
    rows = [x for x in table.splitlines() if " encoders.1.feed_forward_macaron " in x]
    assert rows
    assert "ffn_channels" in rows[0]
    assert rows[0].count("%") == 2


@pytest.mark.slow
def test_a_terminal_shows_the_time_that_is_left(dense):
    seen = on_a_terminal("bench", dense, "--seconds", "8", "--rounds", "60")
    assert "importing ESPnet" in seen
    left = re.findall(r"60 rounds of 8 s, on one thread .* 0:00:\d\d 0:00:\d\d", seen)
    assert left


def test_an_experiment_with_its_average_alone(dense, tmp_path, capsys):
    """As a zip of the model zoo leaves it."""
    (tmp_path / "config.yaml").write_text((dense / "config.yaml").read_text())
    shutil.copy(dense / "model.pth", tmp_path / "valid.acc.ave.pth")
    assert main(["inspect", str(tmp_path)]) == 0
    assert "valid.acc.ave.pth" in capsys.readouterr().out


def test_a_mistake_has_a_message_and_debug_the_stack(tmp_path, capsys):
    words = ["inspect", str(tmp_path / "none")]
    assert main(words) == 1
    message = capsys.readouterr().err
    assert message.startswith("espnet-l0prune inspect: ")
    assert "Traceback" not in message
    for debug in (["--debug", *words], [*words, "--debug"]):
        with pytest.raises(ValueError, match="none"):
            main(debug)


def test_an_espnet_that_cannot_be_imported(dense, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "espnet2.tasks.asr", None)
    assert main(["inspect", str(dense)]) == 1
    message = capsys.readouterr().err
    assert "this ESPnet cannot be used: " in message
    assert "`espnet-l0prune doctor` says what is wrong" in message


def test_bash_completes_commands_and_folders(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp.txt").write_text("")

    def complete(*words: str) -> list[str]:
        line = (
            f"source {script}; COMP_WORDS=(espnet-l0prune {' '.join(words)}); "
            f"COMP_CWORD={len(words)}; _shtab_espnet_l0prune; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True
        )
        return done.stdout.split()

    assert complete("ins") == ["inspect"]
    assert complete("inspect", "ex") == ["exp"]
    assert complete("export", "pl") == ["plugin"]


def test_schema_knows_options_and_misspelt_ones(capsys):
    jsonschema = pytest.importorskip("jsonschema")
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    folder = os.path.join(os.path.dirname(__file__), "../../egs/librispeech")
    configurations = [
        os.path.join(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if name.endswith(".yaml") and ("prune" in name or "finetune" in name)
    ]
    assert len(configurations) == 4
    for path in configurations:
        with open(path, encoding="utf-8") as file:
            assert not [*validator.iter_errors(yaml.safe_load(file))], path
    for wrong in (
        {"sparsity_scheduler_conf": {"warmup": 1}},
        {"sparsity_constraint": "lagrange"},
        {"encoder_conf": {"open_probability": "high"}},
        {"encoder_conf": {"open_probability": 0.5}},
        {"encoder_conf": {"random_features": 0}},
        {"model_conf": {"temperature": [1]}},
        {"model_conf": {"layer_weight": 1e300}},
        {"optim_conf": {"betas": [0.9]}},
        {"optim_conf": {"betas": [0.9, 1.0]}},
        {"sparsity_constraint_conf": {"nu": 1}},
        {"model_conf": {"layer_input": "both"}},
        {"decoder_conf": {"random_features": 3}},
        {"sparsity_scheduler_conf": {"scope": "all"}},
        {"sparsity_scheduler_conf": {"fs": 8000}},
        {"sparsity_scheduler_conf": {"target": 1.5}},
        {"sparsity_scheduler_conf": {"target": {"parms": 0.5}}},
        {"encoder_conf": {"units": ["heds"]}},
        {"encoder_conf": {"units": "papers"}},
        {"optim_conf": {"order": "jont"}},
        {"encoder": "l0_confomer"},
        {"optim": "l0_adam"},
    ):
        assert [*validator.iter_errors(wrong)], wrong


def test_schema_has_every_option_with_its_text(capsys):
    assert main(["schema"]) == 0
    found = json.loads(capsys.readouterr().out)["properties"]
    for part in ("encoder", "model", "optim", "sparsity_scheduler"):
        for name, option in found[f"{part}_conf"]["properties"].items():
            assert option.get("description"), f"{part}_conf: {name}"
    assert found["encoder_conf"]["properties"]["open_probability"]["default"] == 0.99
    # constraints differ in it
    rate = found["sparsity_constraint_conf"]["properties"]["multiplier_lr"]
    assert "default" not in rate
    assert found["sparsity_constraint_conf"]["properties"]["kp"]["default"] == 200

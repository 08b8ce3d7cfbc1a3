"""Cards of experiments whose files are damaged: one message, or a card without them."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_l0prune.cli import main
from espnet_l0prune.testing.experiments import save_experiment

OPTIONS = (
    "token_list", "input_size", "frontend_conf", "model", "model_conf", "encoder",
    "encoder_conf", "decoder", "decoder_conf", "preencoder", "sparsity_scheduler",
    "sparsity_scheduler_conf", "preprocessor", "normalize_conf",
)  # fmt: skip
BAD = [None, True, -1, 0, 1e300, float("inf"), "", "a text", [], [[1]], {}, {"a": None}]


def card(folder: Path, capsys) -> str:
    """What the command says of a card that it refuses; nothing where it wrote one."""
    out = folder.parent / "README.md"
    code = main(["card", str(folder), "--out", str(out), "--force"])
    said = capsys.readouterr().err
    assert (code, bool(said)) in ((0, False), (1, True))
    assert "Traceback" not in said
    return said


def test_any_option(tmp_path, capsys):
    save_experiment(tmp_path / "exp")
    file = tmp_path / "exp/config.yaml"
    config = yaml.safe_load(file.read_text())

    @given(st.sampled_from(OPTIONS), st.sampled_from(BAD))
    @settings(
        derandomize=True,
        max_examples=20,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def check(name, value):
        file.write_text(yaml.safe_dump(config | {name: value}))
        card(tmp_path / "exp", capsys)

    check()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sparsity_scheduler": "linear", "sparsity_goal": 5}, "--sparsity_goal must be"),
        (
            {"sparsity_scheduler": "linear", "sparsity_scheduler_conf": 1},
            "has no mapping",
        ),
        (
            {"encoder_conf": [1]},
            "has no mapping in encoder_conf; expected the config.yaml",
        ),
        ({5: 6}, "it has a key that is no name"),
    ],
)
def test_options_of_another_kind(change, said, tmp_path, capsys):
    save_experiment(tmp_path / "exp")
    file = tmp_path / "exp/config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | change))
    assert said in card(tmp_path / "exp", capsys)


def test_tables_of_errors_that_are_no_text(tmp_path, capsys):
    save_experiment(tmp_path / "exp")
    (tmp_path / "exp/RESULTS.md").write_bytes(b"\xff\xfe")
    assert "RESULTS.md cannot be read" in card(tmp_path / "exp", capsys)
    (tmp_path / "exp/RESULTS.md").write_text("|WER|")
    assert not card(tmp_path / "exp", capsys)
    assert "|WER|" in (tmp_path / "README.md").read_text()

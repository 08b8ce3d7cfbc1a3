"""Only what a file is named as is packed beside a model."""

import io
import os
import shutil

import numpy as np
import pytest
import sentencepiece
import yaml
from PIL import Image

from espnet_l0prune.cli import main
from espnet_l0prune.deploy.extras import (
    LARGEST,
    LARGEST_STATISTICS,
    check_picture,
    check_statistics,
    check_tokenizer,
    copy_checked,
)
from espnet_l0prune.testing.experiments import save_experiment
from tests.deploy.test_export import read


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h"] * 9),
        model_writer=model,
        vocab_size=12,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exp") / "exp"
    save_experiment(folder, encoder="l0_conformer", encoder_conf={"units": []})
    return folder


@pytest.fixture
def exp(dense, tmp_path):
    return shutil.copytree(dense, tmp_path / "exp")


def configure(exp, **changes) -> None:
    config = yaml.safe_load((exp / "config.yaml").read_text()) | changes
    (exp / "config.yaml").write_text(yaml.safe_dump(config))


def saved(**arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def kaldi(rows: int) -> bytes:
    content = io.BytesIO()
    np.save(content, np.ones((rows, 4)))
    return content.getvalue()


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("L", (4, 4)).save(content, "png")
    return content.getvalue()


def test_what_espnet_reads_is_packed(exp, tmp_path, tokenizer, capsys):
    """And nothing that no tokenizer reads, or that lies about in images/."""
    (tmp_path / "bpe").write_bytes(tokenizer)
    (tmp_path / "passwords").write_text("mine")
    (exp / "images").mkdir()
    (exp / "images/loss.png").write_bytes(picture())
    (exp / "images/notes.txt").write_text("mine")
    configure(exp, token_type="bpe", bpemodel=str(tmp_path / "bpe"))
    command = ["export", "plugin", str(exp), "--out", str(tmp_path / "m.zip"), "--force"]
    assert main(command) == 0
    names, config, _ = read(tmp_path / "m.zip")
    assert {"bpe.model", "images/loss.png"} <= names
    assert "images/notes.txt" not in names
    assert config["bpemodel"] == "bpe.model"
    configure(exp, token_type="char", bpemodel=str(tmp_path / "passwords"))
    assert main(command) == 0
    names, config, _ = read(tmp_path / "m.zip")
    assert "bpe.model" not in names
    assert config["bpemodel"] is None


def test_what_is_something_else_is_not_packed(exp, tmp_path, capsys):
    """And the earlier zip is left."""
    secret, out = tmp_path / "secret", tmp_path / "m.zip"
    secret.write_text("root:*:1")
    out.write_text("an earlier one")

    def refused() -> str:
        command = ["export", "plugin", str(exp), "--out", str(out), "--force"]
        assert main(command) == 1
        assert out.read_text() == "an earlier one"
        return " ".join(capsys.readouterr().err.split())

    configure(exp, token_type="bpe", bpemodel=str(secret))
    assert "secret cannot be packed" in (message := refused())
    assert "expected bpemodel, a model of sentencepiece's" in message
    configure(exp, token_type="char", bpemodel=None)
    (exp / "images").mkdir()
    (exp / "images/loss.png").symlink_to(secret)
    assert "loss.png is a link" in refused()
    (exp / "images/loss.png").unlink()
    (exp / "images/loss.png").write_text("root:*:1")
    assert "expected a picture (PNG)" in refused()
    shutil.rmtree(exp / "images")
    (exp / "images").symlink_to(tmp_path)
    assert "images is a link" in refused()
    (exp / "images").unlink()
    (exp / "RESULTS.md").symlink_to(secret)
    assert "RESULTS.md is a link" in refused()


@pytest.mark.parametrize(
    ("check", "content"),
    [
        (check_tokenizer, b"root:*:1"),
        (check_tokenizer, b""),
        (check_picture, b"root:*:1"),
        (check_picture, b"GIF89a"),
        (check_statistics, b"root:*:1"),
        (check_statistics, saved(count=1, sum=np.ones(3))),
        (check_statistics, saved(count=1, sum=np.ones(3), sum_square=np.ones(2))),
        (check_statistics, saved(count=np.array([{}]), sum=1, sum_square=1)),
        (check_statistics, bytes(LARGEST_STATISTICS + 1)),
        (check_statistics, kaldi(3)),
    ],
)
def test_contents_that_are_something_else(check, content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r"file cannot be packed .*; expected this"):
        copy_checked(tmp_path / "file", tmp_path / "copy", "this", check)
    assert not (tmp_path / "copy").exists()


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "none", "."):
        with pytest.raises(ValueError, match="cannot be packed"):
            copy_checked(tmp_path / name, tmp_path / "copy", "this", check_picture)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(ValueError, match="it has more than"):
        copy_checked(tmp_path / "large", tmp_path / "copy", "this", check_picture)


def test_both_kinds_of_statistics():
    check_statistics(saved(count=5, sum=np.ones(3), sum_square=np.ones(3)))
    check_statistics(kaldi(2))

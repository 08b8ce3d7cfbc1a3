"""Zips that a stranger may have made: refused, with nothing written or run."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.tasks.ssl import SSLTask

from espnet_l0prune.cli import main
from espnet_l0prune.deploy.archive import LARGEST, check_members, unpack, unpack_model
from espnet_l0prune.testing.experiments import save_experiment
from tests.attacks import META, ZIPS, write_zip


class Evil:
    """Whoever unpickles it leaves a file behind."""

    def __reduce__(self):
        return Path.touch, (Path(os.environ["EVIL_MARK"]),)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", ZIPS)
def test_a_malicious_zip(what, tmp_path, monkeypatch):
    members, message = ZIPS[what]
    write_zip(tmp_path / "in.zip", members)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        unpack_model(tmp_path / "in.zip", tmp_path / "new/dense")
    assert [p.name for p in tmp_path.iterdir() if p.name != "new"] == ["in.zip"]
    assert not list((tmp_path / "new").glob("*"))


def test_flipped_bits(tmp_path):
    """In whatever place: unpacked as it was, or refused."""
    content = b"some text, " * 500
    write_zip(tmp_path / "in.zip", [("a", content)])
    good = (tmp_path / "in.zip").read_bytes()
    refused = 0
    for place in range(0, len(good)):
        bad = bytearray(good)
        bad[place] ^= 4
        (tmp_path / "in.zip").write_bytes(bad)
        try:
            unpack(tmp_path / "in.zip", tmp_path / f"{place}")
        except ValueError:
            refused += 1
        else:
            (file,) = [p for p in (tmp_path / f"{place}").rglob("*") if p.is_file()]
            assert file.read_bytes() == content
    assert refused > len(good) // 2


def test_aliases_do_not_multiply(tmp_path):
    """A billion words in a few lines of YAML: in the zip's list, in its configuration."""
    lines = ["token_list: &a0 [x, x]"]
    lines += [f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    bomb = "\n".join(lines)
    for meta, config in ((bomb, "token_list: []"), (yaml.safe_dump(META), bomb)):
        members = [("meta.yaml", meta), ("exp/config.yaml", config)]
        write_zip(tmp_path / "in.zip", [*members, ("exp/model.pth", b"x")])
        with pytest.raises(ValueError, match="too many, as its aliases repeat them"):
            unpack_model(tmp_path / "in.zip", tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_a_zip_that_expands_further_than_it_says(tmp_path):
    """A byte is said of a file that is a megabyte: no more of it is written, nor kept."""
    write_zip(tmp_path / "in.zip", [("a", bytes(2**20))])
    content = (tmp_path / "in.zip").read_bytes()
    large, small = (2**20).to_bytes(4, "little"), (1).to_bytes(4, "little")
    assert content.count(large) == 2  # in both of the headers
    (tmp_path / "in.zip").write_bytes(content.replace(large, small))
    with pytest.raises(ValueError, match=r"cannot be unpacked .*CRC"):
        unpack(tmp_path / "in.zip", tmp_path / "new")
    assert os.listdir(tmp_path) == ["in.zip"]


def test_what_would_fill_the_disk_or_a_folder_that_exists(tmp_path, monkeypatch):
    write_zip(tmp_path / "in.zip", [("a", bytes(100))])
    with pytest.raises(ValueError, match="exists; expected a new folder"):
        unpack(tmp_path / "in.zip", tmp_path)
    free = shutil.disk_usage(tmp_path)._replace(free=98)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(ValueError, match="needs 100 bytes, and 98 are free"):
        unpack(tmp_path / "in.zip", tmp_path / "new")
    large = zipfile.ZipInfo("a")
    large.file_size = large.compress_size = LARGEST + 1
    with pytest.raises(ValueError, match=f"expected at most {LARGEST}"):
        check_members([large], tmp_path / "in.zip")
    assert os.listdir(tmp_path) == ["in.zip"]


@pytest.mark.parametrize("keep", [0, 30, 200])
def test_a_damaged_zip(keep, tmp_path):
    write_zip(tmp_path / "in.zip", [("a", os.urandom(300))])
    content = (tmp_path / "in.zip").read_bytes()
    (tmp_path / "in.zip").write_bytes(content[:keep])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(tmp_path / "in.zip", tmp_path / "new")
    content = bytearray(content)
    content[100] ^= 1
    (tmp_path / "in.zip").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(tmp_path / "in.zip", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_encrypted_zip(tmp_path):
    write_zip(tmp_path / "in.zip", [("a", b"x")])
    content = bytearray((tmp_path / "in.zip").read_bytes())
    content[6] |= 1  # the flag, in both of the headers
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "in.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be unpacked .*encrypted"):
        unpack(tmp_path / "in.zip", tmp_path / "new")


def test_a_pickle_for_a_model_runs_nothing(tmp_path, monkeypatch, capsys):
    """In the zip, and wherever else our commands take a checkpoint."""
    mark = tmp_path / "evil"
    monkeypatch.setenv("EVIL_MARK", str(mark))
    save_experiment(tmp_path / "exp")
    for content in (pickle.dumps(Evil()), None):
        if content is None:
            torch.save({"encoder.after_norm.weight": Evil()}, tmp_path / "exp/model.pth")
        else:
            (tmp_path / "exp/model.pth").write_bytes(content)
        write_zip(
            tmp_path / "in.zip",
            [
                ("meta.yaml", yaml.safe_dump(META)),
                ("exp/config.yaml", (tmp_path / "exp/config.yaml").read_bytes()),
                ("exp/model.pth", (tmp_path / "exp/model.pth").read_bytes()),
            ],
        )
        out, exp = str(tmp_path / "out"), str(tmp_path / "exp")
        for command in (
            ["adopt", str(tmp_path / "in.zip"), "--out", out],
            ["adopt", exp, "--out", out, "--checkpoint", "model.pth"],
            ["inspect", exp, "--checkpoint", "model.pth"],
            ["cut", exp, "--out", out, "--checkpoint", "model.pth"],
            ["verify", exp, exp, "--checkpoint", "model.pth"],
        ):
            assert main(command) == 1, command
            assert "cannot be loaded" in capsys.readouterr().err
        assert not mark.exists()
        assert not (tmp_path / "out").exists()


def test_weights_of_a_front_end_run_nothing(tmp_path, monkeypatch, capsys):
    """ESPnet reads the file that a configuration names, with code and all."""
    mark = tmp_path / "evil"
    monkeypatch.setenv("EVIL_MARK", str(mark))
    small = {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 1}
    ssl = vars(SSLTask.get_parser().parse_args(["--output_dir", "none"]))
    ssl |= {"input_size": None, "token_list": ["a"], "preencoder": None, "util": []}
    ssl |= {"encoder": "transformer", "encoder_conf": small, "frontend": "default"}
    ssl["loss"] = []
    folder = tmp_path / "exp"
    save_experiment(folder)
    (folder / "ssl").mkdir()
    (folder / "ssl/config.yaml").write_text(yaml.safe_dump(ssl))
    torch.save({"x": Evil()}, folder / "ssl/ssl.pth")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    named = {"frontend_conf": {"path_or_url": "exp/ssl/ssl.pth"}}
    config |= {"input_size": None, "frontend": "espnet_ssl", "frontend_conf": named}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    files = [p for p in folder.rglob("*") if p.is_file()]
    members = [(str(p.relative_to(tmp_path)), p.read_bytes()) for p in files]
    write_zip(tmp_path / "in.zip", [("meta.yaml", yaml.safe_dump(META)), *members])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")  # which torch ignores
    for command in (["adopt", "in.zip", "--out", "out"], ["inspect", "exp"]):
        assert main(command) == 1
        assert "holds more than plain tensors" in capsys.readouterr().err
    assert not mark.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ

"""Which checkpoint of an experiment is taken, where none is named."""

import os

import pytest

from espnet_l0prune.plugin.experiment import average_of, averages_of, last_of


def make(folder, *names: str) -> None:
    """Make empty files, each a second younger than the one before."""
    for age, name in enumerate(names):
        (folder / name).touch()
        os.utime(folder / name, (age, age))


@pytest.mark.parametrize(
    ("names", "last"),
    [
        (["last.ckpt", "latest.pth", "valid.acc.ave.pth"], "latest.pth"),
        (["last-v2.ckpt", "last.ckpt", "last-v1.ckpt"], "last-v1.ckpt"),
        (["model.pth"], "model.pth"),
        (["valid.acc.ave.pth"], "valid.acc.ave.pth"),
        ([], "model.pth"),
    ],
)
def test_the_last_one(names, last, tmp_path):
    make(tmp_path, *names)
    assert last_of(tmp_path) == last


def test_averages_of_espnet3_are_those_of_the_last_run(tmp_path):
    """It leaves those of fewer epochs, and of other runs."""
    names = [f"valid.loss.ave_{n}best.pth" for n in (5, 1, 2, 3)]
    make(tmp_path, *names, "last.ckpt")
    assert average_of(tmp_path) == "valid.loss.ave_3best.pth"
    make(tmp_path, "valid.acc.ave_1best.pth")
    expected = ["valid.acc.ave_1best.pth", "valid.loss.ave_3best.pth"]
    assert averages_of(tmp_path) == expected
    with pytest.raises(ValueError, match="expected one of them in --checkpoint"):
        average_of(tmp_path)


def test_averages_of_espnet2_are_known_by_their_links(tmp_path):
    make(tmp_path, "valid.acc.ave_5best.pth", "valid.acc.ave.pth")
    assert averages_of(tmp_path) == ["valid.acc.ave.pth"]

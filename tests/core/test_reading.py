"""Files of strangers: plain data, or one reason, in no time."""

import collections
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch

from espnet_l0prune.core.reading import read_json, read_tensors, read_text, read_yaml
from tests.attacks import JSON, PICKLES, STEPS, YAML, write_steps


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        pytest.param(read, *case, id=f"{read.__name__}-{what}")
        for read, cases in ((read_yaml, YAML), (read_json, JSON))
        for what, case in cases.items()
    ],
)
def test_a_text_that_is_refused(read, text, message, tmp_path):
    (tmp_path / "x").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "x")


@pytest.mark.parametrize("number", [-(2**63), 2**63, 2**64 - 1, 2**64, -(2**63) - 1])
def test_integers_of_64_bits(number, tmp_path):
    (tmp_path / "x").write_text(str(number))
    assert read_json(tmp_path / "x") == number
    if -(2**63) <= number < 2**64:
        assert read_yaml(tmp_path / "x") == number
    else:
        with pytest.raises(ValueError, match="a number of more than 64 bits"):
            read_yaml(tmp_path / "x")


def test_empty_lists_count_too(tmp_path):
    """Each takes memory, in particular as often as an alias repeats it."""
    lists = f"a: &a [{'[], ' * 2000}]\nb: [{'*a, ' * 1000}]"
    (tmp_path / "x").write_text(lists)
    with pytest.raises(ValueError, match="too many, as its aliases repeat them"):
        read_yaml(tmp_path / "x")


def test_yaml_that_is_read(tmp_path):
    """Aliases as ESPnet's own config.yaml has them, merge keys, and many tokens."""
    text = "a: &id001 [1, 0x10, 1.5, x]\nb: *id001\nc: &c {d: 1}\ne: {<<: *c, f: 1e400}"
    tokens = [f"▁token{i}" for i in range(50_000)]
    (tmp_path / "x").write_text(text + "\ntokens:\n- " + "\n- ".join(tokens))
    assert read_yaml(tmp_path / "x") == {
        "a": [1, 16, 1.5, "x"],
        "b": [1, 16, 1.5, "x"],
        "c": {"d": 1},
        "e": {"d": 1, "f": "1e400"},
        "tokens": tokens,
    }


def test_json_that_is_read(tmp_path):
    text = '{"a": [1, null, 1e400, -Infinity], "b": ' + "[" * 99 + "]" * 99 + "}"
    (tmp_path / "x").write_text(text)
    found = read_json(tmp_path / "x")
    assert found["a"] == [1, None, float("inf"), -float("inf")]


READERS = (read_text, read_yaml, read_json, read_tensors)


@pytest.mark.parametrize("read", READERS)
def test_only_regular_files(read, tmp_path):
    """A pipe, for which one would wait for ever, a device, a folder, nothing."""
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "no regular file"),
        ("/dev/zero", "no regular file"),
        (tmp_path, "no regular file"),
        (tmp_path / "none", "No such file"),
    ):
        with pytest.raises(ValueError, match=message):
            read(path)


def test_texts(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes("ä\r\nb".encode())
    (tmp_path / "link").symlink_to("x")
    assert read_text(tmp_path / "link") == "ä\nb"
    with pytest.raises(ValueError, match="more than 2 characters"):
        read_text(tmp_path / "x", 2)
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="utf-8"):
        read_text(tmp_path / "x")


# ---------------------------------------------------------------- tensors


def repack(source, target, method: int) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))


def tensors() -> dict:
    weight = torch.randn(40, 50)
    return {
        "weight": weight,
        "tied": weight,
        "part": weight[3:, ::2],
        "half": torch.ones(3).half(),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "long": torch.zeros(10_000),
    }


@pytest.mark.parametrize("form", ["as torch writes it", "stored", "deflated", "legacy"])
def test_tensors_in_each_form(form, tmp_path):
    new, saved = form != "legacy", tensors()
    torch.save(saved, tmp_path / "in", _use_new_zipfile_serialization=new)
    if form in ("stored", "deflated"):
        method = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}[form]
        repack(tmp_path / "in", tmp_path / "out", method)
        (tmp_path / "out").rename(tmp_path / "in")
    found = read_tensors(tmp_path / "in")
    assert list(found) == list(saved)
    for name, tensor in saved.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_parts_that_torch_and_python_would_not_read_alike(tmp_path):
    torch.save({"x": torch.zeros(2**16)}, tmp_path / "in")
    repack(tmp_path / "in", tmp_path / "bzip2", zipfile.ZIP_BZIP2)
    repack(tmp_path / "in", tmp_path / "zeros", zipfile.ZIP_DEFLATED)
    shutil.copy(tmp_path / "in", tmp_path / "twice")
    with zipfile.ZipFile(tmp_path / "twice", "a") as archive:
        archive.writestr("in/data.pkl", b"x")
    content = bytearray((tmp_path / "in").read_bytes())
    size = content.rindex((2**18).to_bytes(4, "little"))  # as the list of parts has it
    content[size - 4 : size + 4] = 2 * (2**24).to_bytes(4, "little")
    (tmp_path / "larger").write_bytes(content)
    for name, message in (
        ("bzip2", "compressed in a way that torch does not know"),
        ("zeros", "expands to more than 20 times its size"),
        ("twice", "has a part twice"),
        ("larger", "parts overlap"),
    ):
        with pytest.raises(ValueError, match=message):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("new", [True, False])
def test_a_training_is_plain_data_too(new, tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    state = {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3, 3)}}
    groups = [{"lr": 1e-3, "betas": (0.9, 0.98), "foreach": None, "params": [0, 1]}]
    saved = {
        "model": net.state_dict(),
        "optimizers": [{"state": state, "param_groups": groups}],
        "schedulers": [{"milestones": collections.Counter([3, 4]), "base_lrs": [1e-3]}],
        "more": [{1, 2}, torch.Size([3]), b"bytes", None, 2.5, torch.device("cpu")],
    }
    torch.save(saved, tmp_path / "in", _use_new_zipfile_serialization=new)
    found = read_tensors(tmp_path / "in")
    assert found["optimizers"][0]["param_groups"] == groups
    assert found["schedulers"] == saved["schedulers"]
    assert found["more"] == saved["more"]
    assert torch.equal(found["model"]["1.running_var"], net[1].running_var)


@pytest.mark.parametrize("named", [False, True])
def test_types_that_the_caller_allows(named, tmp_path):
    """By themselves, or with the name that the file has for them."""
    saved = {"x": np.float64(1.5), "y": torch.ones(2)}
    torch.save(saved, tmp_path / "in")
    with pytest.raises(ValueError, match="more than plain tensors"):
        read_tensors(tmp_path / "in")
    scalar = saved["x"].__reduce__()[0]
    name = f"{scalar.__module__}.{scalar.__qualname__}"
    types = [(scalar, name) if named else scalar, np.dtype, type(saved["x"].dtype)]
    found = read_tensors(tmp_path / "in", types)
    assert found["x"] == 1.5


@pytest.mark.parametrize("new", [True, False])
def test_flipped_bits(new, tmp_path):
    """Read as it was, or refused; the older form has no checksums."""
    saved = {"weight": torch.ones(64), "more": torch.zeros(2, 3)}
    torch.save(saved, tmp_path / "in", _use_new_zipfile_serialization=new)
    good = (tmp_path / "in").read_bytes()
    refused = 0
    for place in range(0, len(good), 3):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (tmp_path / "in").write_bytes(bad)
        try:
            found = read_tensors(tmp_path / "in")
        except ValueError:
            refused += 1
        else:
            assert not new or all(torch.equal(found[k], v) for k, v in saved.items())
    assert refused > len(good) // (6 if new else 30)


def test_every_flipped_bit_of_a_weight_is_found(tmp_path):
    torch.save({"weight": torch.ones(64)}, tmp_path / "in")
    good = (tmp_path / "in").read_bytes()
    start = good.index(torch.ones(64).numpy().tobytes())
    for place in range(start, start + 256):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (tmp_path / "in").write_bytes(bad)
        with pytest.raises(ValueError, match="has another checksum"):
            read_tensors(tmp_path / "in")


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("what", PICKLES)
def test_pickles_that_are_refused(what, new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, message = PICKLES[what]
    saved = value if isinstance(value, list) else {"x": value}
    torch.save(saved, tmp_path / "in", _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "in")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize("steps", STEPS)
def test_steps_that_no_tensor_needs(steps, tmp_path):
    write_steps(tmp_path / "in", steps)
    with pytest.raises(ValueError, match=STEPS[steps]):
        read_tensors(tmp_path / "in")


def test_a_pickle_that_is_too_long(tmp_path):
    """A thousand calls, each of which visits the same 2100 numbers."""
    numbers, call = b"(" + b"K\x01" * 2100 + b"tq\x00", b"ctorch\nSize\nh\x00\x85R"
    write_steps(tmp_path / "in", numbers + 1000 * call + b".")
    with pytest.raises(ValueError, match="too long for one of tensors"):
        read_tensors(tmp_path / "in")

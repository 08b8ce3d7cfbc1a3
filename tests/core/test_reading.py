"""Files of strangers: plain data, or one reason, in no time."""

import collections
import os
import pickle
import zipfile

import pytest
import torch

from espnet_l0prune.core import pickles
from espnet_l0prune.core.reading import read_json, read_tensors, read_text, read_yaml


def bomb(depth: int, key: str = "") -> str:
    """YAML of a few lines that has 10**depth values."""
    lines = ["a0: &a0 {x: 1}" if key else "a0: &a0 [x]"]
    for i in range(1, depth + 1):
        before = f"[{', '.join([f'*a{i - 1}'] * 10)}]"
        lines.append(f"a{i}: &a{i} " + (f"{{{key}: {before}}}" if key else before))
    return "\n".join(lines)


YAML = {
    "aliases that multiply": (bomb(9), "too many"),
    "merges that multiply": (bomb(9, "<<"), "too many"),
    "a long text, many times": (
        f"a: &a {'x' * 2**20}\nb: [{', '.join(['*a'] * 100)}]",
        "too many",
    ),
    "a list within itself": ("a: &a [*a]", "holds itself"),
    "a mapping within itself": ("&a {b: {c: *a}}", "holds itself"),
    "depth": ("[" * 101 + "]" * 101, "nested more than 100 deep"),
    "depth, by indentation": (
        "\n".join(" " * i + "a:" for i in range(102)),
        "nested more than 100 deep",
    ),
    "half of a great depth": (
        "[" * 10**5,
        "nested .* 100 deep|nesting depth",
    ),
    "digits": ("a: " + "9" * 5000, "more than 64 bits"),
    "digits of base 16": ("a: 0x" + "f" * 100, "more than 64 bits"),
    "digits of base 60": ("a: " + ":".join(["1"] * 10**5) + ".5", "more than 64 bits"),
    "a tag of Python's": ("!!python/object/apply:os.system [x]", "could not determine"),
    "a tag that does not fit": ("!!bool x", "its tag does not fit"),
    "a day that is none": ("a: 2024-99-99", "month must be in"),
    "an alias of nothing": ("[*a]", "undefined alias"),
    "no YAML": ("a: [", "while parsing"),
    "two documents": ("a\n---\nb", "single document"),
    "a list for a key": ("? [a]\n: b", "unhashable key"),
}


@pytest.mark.parametrize("what", YAML)
def test_yaml_that_is_refused(what, tmp_path):
    text, message = YAML[what]
    (tmp_path / "x").write_text(text)
    with pytest.raises(ValueError, match=message):
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


JSON = {
    "depth": ("[" * 101 + "]" * 101, "nested more than 100 deep"),
    "great depth": ("[" * 10**5 + "]" * 10**5, "nested"),
    "digits": ("9" * 5000, "more than 64 bits"),
    "no JSON": ("{", "Expecting"),
}


@pytest.mark.parametrize("what", JSON)
def test_json_that_is_refused(what, tmp_path):
    text, message = JSON[what]
    (tmp_path / "x").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "x")


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


@pytest.mark.parametrize("new", [True, False])
def test_a_training_is_plain_data_too(new, tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(net.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4])
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    saved = {
        "model": net.state_dict(),
        "optimizers": [optimizer.state_dict()],
        "schedulers": [scheduler.state_dict()],  # has a Counter
        "more": [{1, 2}, torch.Size([3]), b"bytes", None, 2.5, torch.device("cpu")],
    }
    torch.save(saved, tmp_path / "in", _use_new_zipfile_serialization=new)
    found = read_tensors(tmp_path / "in")
    assert found["schedulers"] == saved["schedulers"]
    assert found["more"] == saved["more"]
    assert torch.equal(found["model"]["1.running_var"], net[1].running_var)


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


def nested(times: int = 60) -> tuple:
    """Of 2**times parts."""
    found: tuple = (1,)
    for _ in range(times):
        found = (found, found)
    return found


class Key:
    """Is a dict with one key, once it is unpickled."""

    def __init__(self, key):
        self.key = key

    def __reduce__(self):
        return collections.OrderedDict, (), None, None, iter([(self.key, 1)])


class Call:
    """Calls something once it is unpickled."""

    def __init__(self, called, *args):
        self.reduced = called, args

    def __reduce__(self):
        return self.reduced


PICKLES = {
    "a key of 2**60 parts": (Key(nested()), "a tuple for a key"),
    "a set of 2**60 parts": (Call(set, [nested()]), "makes a call"),
    "a count of 2**60 parts": (Call(collections.Counter, [nested()]), "makes a call"),
    "a dict of pairs": (Call(collections.OrderedDict, [(1, 2)]), "makes a call"),
    "a terabyte": (Call(bytearray, 10**12), "more than plain tensors"),
    "a tensor of a terabyte": (Call(torch.FloatTensor, 10**12), "more than plain"),
    "a command": (Call(os.system, "touch evil"), "more than plain tensors"),
    "a codec that takes long": (
        Call(pickle.loads(b"c_codecs\nencode\n."), "x" * 99, "punycode"),
        "makes a call",
    ),
    "an object": (pytest.Session, "more than plain tensors"),
    "a list": ([1], "it holds a list"),
}


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


STEPS = {
    b"(K\x01K\x02": "no tensor needs|pickle exhausted|makes no sense",
    b"K\x01p0\n.": "takes a step, PUT, that no tensor needs",
    b"}(]K\x01u.": "a list or a tuple for a key",
    b"}]K\x01s.": "a list or a tuple for a key",
    b"ccollections\nOrderedDict\n)R]]ab.": "a list or a tuple for a key",
    b"ctorch\nFloatStorage\n)R.": "makes a call that no tensor needs",
    b"](K\x01)R.": "makes a call that no tensor needs|makes no sense",
    b"(U\x07storage]]atQ.": "a list or a tuple for a key",
    b"K\x01K\x02a.": "makes no sense",
    b"h\x01.": "makes no sense",
    b"t.": "makes no sense",
}


@pytest.mark.parametrize("steps", STEPS)
def test_steps_that_no_tensor_needs(steps, tmp_path):
    with zipfile.ZipFile(tmp_path / "in", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + steps)
        archive.writestr("x/version", b"3\n")
    with pytest.raises(ValueError, match=STEPS[steps]):
        read_tensors(tmp_path / "in")


def test_a_pickle_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MOST_STEPS", 1000)
    with zipfile.ZipFile(tmp_path / "in", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02(" + b"K\x01" * 1000 + b"t.")
    with pytest.raises(ValueError, match="too long for one of tensors"):
        read_tensors(tmp_path / "in")

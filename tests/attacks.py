"""Hostile and damaged inputs, generated: for the tests, and for a table in the docs.

`tests/hostile` gives each to a command, in a folder that holds a good experiment, `exp`,
and `model.zip`, the same as the model zoo packs it.
"""

import collections
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

# ---------------------------------------------------------------- texts


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


JSON = {
    "depth": ("[" * 101 + "]" * 101, "nested more than 100 deep"),
    "great depth": ("[" * 10**5 + "]" * 10**5, "nested"),
    "digits": ("9" * 5000, "more than 64 bits"),
    "no JSON": ("{", "Expecting"),
}


# ---------------------------------------------------------------- pickles


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
    "an object": (Path, "more than plain tensors"),
    "a list": ([1], "it holds a list"),
}


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


def write_steps(file: Path, steps: bytes) -> None:
    """A checkpoint whose pickle takes these steps."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + steps)
        archive.writestr("x/version", b"3\n")


# ---------------------------------------------------------------- zips

META = {
    "yaml_files": {"asr_train_config": "exp/config.yaml"},
    "files": {"asr_model_file": "exp/model.pth"},
}


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def device(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFCHR | 0o777) << 16
    return info


def packed(name: str, method: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    return info


ZIPS = {
    "a path upwards": ([("../evil", b"x")], "leads out of the folder"),
    "a path upwards in the middle": ([("a/../../evil", b"x")], "leads out"),
    "an absolute path": ([("/tmp/evil", b"x")], "leads out"),
    "a drive": ([("C:evil", b"x")], "leads out"),
    "a backslash": ([("..\\evil", b"x")], "leads out"),
    "a control character": ([("a\nb", b"x")], "leads out"),
    "a symbolic link": ([(link("exp"), b"/etc"), ("exp/passwd", b"x")], "is a link"),
    "a device": ([(device("zero"), b"")], "is a link or a device"),
    "a file twice": ([("a", b"1"), ("a", b"2")], "is in it twice"),
    "one file in another letter case": ([("a", b"1"), ("A", b"2")], "is in it twice"),
    "a file by another spelling": (
        [("b", b"1"), ("a/./b", b"2"), ("a/b", b"2")],
        "twice",
    ),
    "an accent in two codes": ([("\u00e9", b"1"), ("e\u0301", b"2")], "is in it twice"),
    "a file that is a folder": ([("a", b"1"), ("A/b", b"2")], "a file and a folder"),
    "a long name": ([("a" * 201, b"x")], "is too long"),
    "a deep name": ([("a/" * 20 + "b", b"x")], "is too long"),
    "many files": ([(str(i), b"") for i in range(10_001)], "has 10001 files, more than"),
    "a bomb": ([("bomb", bytes(2**26))], "files expand from"),
    "many small bombs": ([(str(i), bytes(2**22)) for i in range(5)], "files expand from"),
    "bzip2": ([(packed("a", zipfile.ZIP_BZIP2), b"x")], "neither stored nor deflated"),
    "lzma": ([(packed("a", zipfile.ZIP_LZMA), b"x")], "neither stored nor deflated"),
    "nothing": ([], "has no files"),
    "no meta.yaml": ([("a", b"x")], "meta.yaml cannot be read"),
    "code in meta.yaml": (
        [("meta.yaml", b"!!python/object/apply:os.system ['touch evil']")],
        "meta.yaml cannot be read",
    ),
    "a file outside, in meta.yaml": (
        [
            (
                "meta.yaml",
                yaml.safe_dump({**META, "files": {"asr_model_file": "/etc/passwd"}}),
            ),
            ("exp/config.yaml", b"token_list: []"),
        ],
        "and its file in the zip",
    ),
    "lists in meta.yaml": (
        [("meta.yaml", b"files: []\nyaml_files: 3")],
        "expected a zip",
    ),
    "a list for a name in meta.yaml": (
        [("meta.yaml", b"files: {asr_model_file: [a]}\nyaml_files: {}")],
        "expected a zip",
    ),
    "code in config.yaml": (
        [
            ("meta.yaml", yaml.safe_dump(META)),
            ("exp/config.yaml", b"!!python/object/apply:os.system ['touch evil']"),
            ("exp/model.pth", b"x"),
        ],
        "config.yaml cannot be read",
    ),
}


def write_zip(path, members) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


# ---------------------------------------------------------------- commands

INSPECT = ("inspect", "exp", "--checkpoint", "model.pth")
ADOPT = ("adopt", "exp", "--out", "out", "--checkpoint", "model.pth")
ADOPT_ZIP = ("adopt", "model.zip", "--out", "out")
REPORT = ("report", "exp", "--out", "page")


@dataclass(frozen=True)
class Attack:
    """What is done to a good experiment or zip, and what a command says of it.

    Args:
        damage: is called in the folder that holds both
        command: that is given them
        message: in the one line with which it refuses; without one, it may also take
            what it is given for what it is
    """

    damage: Callable[[], object]
    command: tuple[str, ...]
    message: str = ""


@dataclass(frozen=True)
class Kind:
    """Attacks of a kind, by name, and what is promised of all of them."""

    promise: str
    attacks: dict[str, Attack]


def written(file: str, content: str | bytes) -> Callable[[], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda: Path(file).write_bytes(data)


def saved(value: object, new: bool = True) -> Callable[[], object]:
    return lambda: torch.save(value, "exp/model.pth", _use_new_zipfile_serialization=new)


def edited(change: Callable[[dict], object], file: str = "exp/config.yaml"):
    """The configuration, after a change in place."""

    def damage() -> None:
        config = yaml.safe_load(Path(file).read_text())
        change(config)
        Path(file).write_text(yaml.safe_dump(config))

    return damage


def zipped(damage: Callable[[], object]) -> Callable[[], None]:
    """The zip, of the experiment after its damage."""

    def pack() -> None:
        damage()
        names = ("exp/config.yaml", "exp/model.pth")
        members = [(name, Path(name).read_bytes()) for name in names]
        write_zip(Path("model.zip"), [("meta.yaml", yaml.safe_dump(META)), *members])

    return pack


def weights(change: Callable[[dict], object]) -> Callable[[], None]:
    """The checkpoint, after a change in place."""

    def damage() -> None:
        state = torch.load("exp/model.pth")
        change(state)
        torch.save(state, "exp/model.pth")

    return damage


def flipped(file: str, part: float) -> Callable[[], None]:
    """A bit of a byte, at a part of the file in [0, 1)."""

    def damage() -> None:
        content = bytearray(Path(file).read_bytes())
        place = int(part * len(content))
        content[place] ^= 1 << place % 8
        Path(file).write_bytes(content)

    return damage


def shortened(file: str, part: float) -> Callable[[], None]:
    def damage() -> None:
        content = Path(file).read_bytes()
        Path(file).write_bytes(content[: int(part * len(content))])

    return damage


def special(file: str, kind: str) -> Callable[[], None]:
    """A file that is none, in the place of another."""

    def damage() -> None:
        Path(file).unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "folder":
            Path(file).mkdir()
        elif kind == "device":
            Path(file).symlink_to("/dev/zero")
        elif kind == "link to itself":
            Path(file).symlink_to(Path(file).name)

    return damage


def _set(*path: str, to: object) -> Callable[[dict], None]:
    def change(config: dict) -> None:
        *parts, last = path
        for part in parts:
            config = config.setdefault(part, {})
        config[last] = to

    return change


NO_FILES = {
    f"{file} is a {kind}": Attack(special(file, kind), command, message)
    for kind in ("pipe", "device", "folder", "link to itself")
    for file, command, message in (
        ("exp/config.yaml", INSPECT, "config.yaml cannot be read"),
        ("exp/model.pth", INSPECT, "model.pth cannot be loaded|no such checkpoint"),
        ("model.zip", ADOPT_ZIP, "cannot be read|cannot be unpacked"),
        ("exp/checkpoint.pth", REPORT, ""),
        ("exp/RESULTS.json", REPORT, ""),
    )
}
TEXTS = {}
for _name, (_text, _) in YAML.items():
    TEXTS[f"config.yaml: {_name}"] = Attack(
        written("exp/config.yaml", _text), INSPECT, "config.yaml cannot be read"
    )
    TEXTS[f"meta.yaml: {_name}"] = Attack(
        lambda text=_text: write_zip(Path("model.zip"), [("meta.yaml", text)]),
        ADOPT_ZIP,
        "meta.yaml cannot be read",
    )
    TEXTS[f"a structure: {_name}"] = Attack(
        lambda text=_text: (
            Path("structure").write_text(text),
            edited(_set("encoder_conf", "structure", to="structure"))(),
            edited(_set("encoder", to="l0_conformer"))(),
        ),
        INSPECT,
        "structure structure cannot be read",
    )
for _name, (_text, _) in JSON.items():
    _damage = written("exp/RESULTS.json", _text)
    TEXTS[f"RESULTS.json: {_name}"] = Attack(_damage, REPORT)
TEXTS["config.yaml: a number for a key"] = Attack(
    written("exp/config.yaml", "token_list: []\n1: 2"), INSPECT, "a key that is no name"
)
TENSORS = {
    f"{_name}{form}": Attack(
        saved({"x": value}, new), INSPECT, "model.pth cannot be load"
    )
    for form, new in (("", True), (", in torch's older form", False))
    for _name, (value, _) in PICKLES.items()
}
TENSORS["numbers in place of weights"] = Attack(
    saved({"x": 5}), INSPECT, "it holds a int for weights"
)
TENSORS["a pickle of Python's own"] = Attack(
    written("exp/model.pth", pickle.dumps(5, 2)), INSPECT, "no file that torch.save wrote"
)
TENSORS |= {
    f"steps {steps!r}": Attack(
        lambda steps=steps: write_steps(Path("exp/model.pth"), steps),
        INSPECT,
        "model.pth cannot be loaded",
    )
    for steps in STEPS
}
BITS = {
    f"{file}, a bit at {part:.0%}": Attack(flipped(file, part), command)
    for file, command in (("exp/model.pth", INSPECT), ("model.zip", ADOPT_ZIP))
    for part in [i / 25 for i in range(25)]
}
BITS |= {
    f"{file}, the first {part:.0%}": Attack(shortened(file, part), command)
    for file, command in (
        ("exp/model.pth", INSPECT),
        ("exp/config.yaml", INSPECT),
        ("model.zip", ADOPT_ZIP),
    )
    for part in [i / 12 for i in range(12)]
}
BITS["a bit of a weight"] = Attack(
    lambda: _flip_weight(), INSPECT, "is damaged: .* has another checksum"
)


def _flip_weight() -> None:
    content = bytearray(Path("exp/model.pth").read_bytes())
    state = torch.load("exp/model.pth")
    place = content.index(state["encoder.after_norm.weight"].numpy().tobytes())
    content[place + 1] ^= 1
    Path("exp/model.pth").write_bytes(content)


def _deflated(state: dict) -> None:
    torch.save(state, "whole")
    with (
        zipfile.ZipFile("whole") as old,
        zipfile.ZipFile("exp/model.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))


def _bomb() -> None:
    """Zeros that a deflated checkpoint is said to hold, a thousand times its size."""
    _deflated({"x": torch.zeros(2**24)})


BOMBS = {
    "zeros, a thousand times the file's size": Attack(
        _bomb, INSPECT, "expands to more than 20 times its size"
    ),
}
ZIP_ATTACKS = {
    name: Attack(
        lambda members=members: write_zip(Path("model.zip"), members), ADOPT_ZIP, message
    )
    for name, (members, message) in ZIPS.items()
}
SIZES = {
    f"{'.'.join(path)}: {value}": Attack(edited(_set(*path, to=value)), INSPECT, message)
    for path, value, message in (
        (("encoder_conf", "num_blocks"), 10**6, "num_blocks: 1000000; expected at most"),
        (("encoder_conf", "num_blocks"), 10**4, "of more than 32 times"),
        (("decoder_conf", "num_blocks"), 10**4, "of more than 32 times"),
        (("encoder_conf", "linear_units"), 10**6, "linear_units: 1000000; expected at"),
        (("encoder_conf", "linear_units"), 10**4, "does not fit|of more than 32 times"),
        (("encoder_conf", "output_size"), 10**4, "of more than 32 times"),
        (("encoder_conf", "max_pos_emb_len"), 10**12, "expected at most"),
        (("encoder_conf", "interctc_layer_idx"), [10**12], "expected at most"),
        (("decoder_conf", "linear_units"), -(10**9), "expected at most"),
        (("frontend_conf", "n_fft"), 10**9, "n_fft: 1000000000; expected at most"),
        (("input_size",), 10**9, "input_size: 1000000000; expected at most"),
    )
}
NO_NUMBERS = {
    f"{value} in {name}": Attack(
        weights(lambda state, n=name, v=value: state[n].flatten()[-1:].fill_(v)),
        command,
        f"has {name} with values that are NaN",
    )
    for name in ("encoder.after_norm.weight", "ctc.ctc_lo.bias")
    for value in (float("nan"), float("inf"), -float("inf"))
    for command in (INSPECT, ADOPT)
}
STATISTICS = "encoder.encoders.0.conv_module.norm.running_var"
NO_NUMBERS["NaN in a batch norm's statistics"] = Attack(
    weights(lambda state: state[STATISTICS].fill_(float("nan"))),
    INSPECT,
    f"has {STATISTICS} with values that are NaN",
)
WRONG = (5, 2.5, float("nan"), "x", ["a"], [[1, {}]], {"a": [1]}, None, True)
OPTIONS = [
    "accum_grad",
    "aux_ctc_tasks",
    "best_model_criterion",
    "ctc_conf",
    "decoder",
    "decoder_conf",
    "dist_world_size",
    "encoder",
    "encoder_conf",
    "fold_length",
    "frontend",
    "frontend_conf",
    "init",
    "input_size",
    "joint_net_conf",
    "max_epoch",
    "model",
    "model_conf",
    "ngpu",
    "normalize",
    "optim",
    "optim_conf",
    "preencoder",
    "preprocessor",
    "scheduler",
    "scheduler_conf",
    "specaug",
    "specaug_conf",
    "token_list",
    "token_type",
    "train_data_path_and_name_and_type",
    "train_shape_file",
    "encoder_conf.attention_heads",
    "encoder_conf.cnn_module_kernel",
    "encoder_conf.structure",
    "encoder_conf.input_layer",
    "encoder_conf.num_blocks",
    "encoder_conf.units",
    "encoder_conf.interctc_layer_idx",
    "decoder_conf.num_blocks",
    "model_conf.ctc_weight",
    "model_conf.teacher_config",
    "optim_conf.lr",
    "optim_conf.betas",
    "scheduler_conf.warmup_steps",
]
TYPES = {
    f"{option}: {WRONG[(i + j) % len(WRONG)]}": Attack(
        edited(_set(*option.split("."), to=WRONG[(i + j) % len(WRONG)])), ADOPT
    )
    for i, option in enumerate(OPTIONS)
    for j in (0, 3, 5)
}
COMMAND = "touch evil |"
DATA = "train_data_path_and_name_and_type"
_FEATS = ["feats.scp", "speech", "kaldi_ark"]
NAMES = {
    f"{'.'.join(path)}: {value}": Attack(
        zipped(edited(_set(*path, to=value))), ADOPT_ZIP, f"has {path[0]}: .*expected a"
    )
    for path, value in (
        ((DATA,), [_FEATS]),
        ((DATA,), [["feats.scp", "speech", "kaldi_ark_x"]]),
        ((DATA,), ["feats.scp,speech,kaldi_ark"]),
        ((DATA,), "feats.scp,speech,kaldi_ark"),
        ((DATA,), _FEATS),
        ((DATA,), {"feats.scp": ["speech", "kaldi_ark"]}),
        ((DATA,), {"a": "feats.scp", "b": "speech", "c": "kaldi_ark"}),
        ((DATA,), [{"path": "feats.scp", "name": "speech", "type": "kaldi_ark"}]),
        ((DATA,), [["feats.scp", "speech", ["kaldi_ark"]]]),
        ((DATA,), [[*_FEATS, "x"]]),
        ((DATA,), [[COMMAND, "speech", "sound"]]),
        ((DATA,), [["/etc/passwd", "text", "text"]]),
        ((DATA,), [["../secret", "text", "text"]]),
        ((DATA,), [["wav.scp", COMMAND, "sound"]]),
        (("valid_data_path_and_name_and_type",), [_FEATS]),
        (("another_data_path_and_name_and_type",), [_FEATS]),
        (("train_shape_file",), ["/etc/passwd"]),
        (("rir_scp",), COMMAND),
        (("noise_scp",), "/etc/passwd"),
        (("noise_scp",), ["noise.scp", COMMAND]),
        (("preprocessor_conf", "noise_info"), [[1.0, COMMAND, [1, 2], [0, 3]]]),
        (("bpemodel",), "/etc/passwd"),
        (("bpemodel",), "~/.ssh/id_rsa"),
        (("token_list",), "/etc/passwd"),
        (("non_linguistic_symbols",), "/etc/passwd"),
        (("normalize_conf", "stats_file"), "../../stats.npz"),
        (("frontend_conf", "download_dir"), "/root"),
        (("frontend_conf", "frontend_conf", "path_or_url"), "https://evil.org/x.pt"),
        (("encoder_conf", "structure"), "/etc/passwd"),
        (("encoder_conf", "structure"), "C:\\secret"),
        (("decoder_conf", "model_name_or_path"), "file:///etc/passwd"),
        (("model_conf", "teacher_config"), "/etc/passwd"),
        (("cleaner",), "__import__('os').system('touch evil')"),
        (("g2p",), "$(touch evil)"),
        (("freeze_param",), ["x; touch evil"]),
        (("chunk_length",), "`touch evil`"),
        (("a_key_of_nobody",), {"deep": [{"deeper": "a\nb"}]}),
    )
}
KINDS = {
    "No regular file": Kind(
        "refused at once: a pipe is not waited for, a device not read", NO_FILES
    ),
    "YAML and JSON": Kind(
        "plain data of at most a million values and 100 levels, as aliases repeat them; "
        "numbers of at most 64 bits",
        TEXTS,
    ),
    "Pickles": Kind(
        "no code runs, and nothing is built but tensors, numbers, strings, lists and "
        "dicts of them, in a time that the file's size bounds",
        TENSORS,
    ),
    "Flipped bits, files cut short": Kind(
        "refused, or read as what they were before: checksums of weights are compared",
        BITS,
    ),
    "Checkpoints that expand": Kind(
        "recompressed ones load as they were, up to 20 times the file's size", BOMBS
    ),
    "Zips of the model zoo": Kind(
        "nothing is written outside the folder asked for, nor more than 20 times the "
        "zip's size, 10,000 files, or the space that is free; all of it or nothing",
        ZIP_ATTACKS,
    ),
    "What a zip's configuration names": Kind(
        "numbers, words, and files of the zip or below the folder that one works in; "
        "data of types that are read from files alone",
        NAMES,
    ),
    "Networks too large": Kind(
        "not built: at most 32 times what the checkpoint holds", SIZES
    ),
    "Weights that are no numbers": Kind(
        "NaN and infinity are refused, with the first tensor's name", NO_NUMBERS
    ),
    "Wrong types in a configuration": Kind("one line that says what is wrong", TYPES),
}


def table() -> list[str]:
    """Of all kinds, in Markdown: what is promised, how many were tried, some of them."""
    lines = ["| what | promised | tried | among them |", "|---|---|---|---|"]
    for name, kind in KINDS.items():
        every = max(len(kind.attacks) // 4, 1)
        some = [f"`` {attack} ``" for attack in list(kind.attacks)[::every][:4]]
        told = ", ".join(some).replace("|", "\\|")
        lines.append(f"| {name} | {kind.promise} | {len(kind.attacks)} | {told} |")
    return lines

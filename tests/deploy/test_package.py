"""A package is measured where there is onnxruntime, and neither torch nor us."""

import ast
import copy
import dataclasses
import importlib.metadata
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_l0prune.cli import main
from espnet_l0prune.core import measuring
from espnet_l0prune.core.measuring import measure, medians_of, time_in_turns
from espnet_l0prune.core.profile import Profile
from espnet_l0prune.core.steps import quiet
from espnet_l0prune.deploy.package import profile_from, write_package
from espnet_l0prune.deploy.profiling import Variants, places_of, profile_model
from espnet_l0prune.deploy.timer import Conditions
from espnet_l0prune.testing.models import arguments
from tests.plugin.test_time import CONFS, small_model

pytest.importorskip("onnxruntime")
RATE = 16_000
HOW = Conditions(0.6, "onnxruntime", minutes=0.0)
NEEDED = "onnxruntime", "numpy", "flatbuffers", "packaging", "protobuf"
BLOCKED = "torch", "espnet", "espnet2", "espnet_l0prune", "onnx", "yaml"
ALONE = """import importlib.util, runpy, sys
sys.path.append(sys.argv[1])
found = [name for name in sys.argv[2].split(",") if importlib.util.find_spec(name)]
sys.exit(f"there is {found}") if found else None
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def built():
    return small_model("transformer")


@pytest.fixture(scope="module")
def package(built, tmp_path_factory):
    """A folder for as few graphs as there can be, which bears any noise: a test's machine
    is busy."""
    folder = tmp_path_factory.mktemp("package") / "pi"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("espnet_l0prune.deploy.profiling.SHARES", ())
        patch.setattr("espnet_l0prune.core.profile.NOISIEST", 3600.0)
        write_package(built, HOW, RATE, folder, quiet)
    return folder


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr("espnet_l0prune.deploy.profiling.SHARES", ())


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """A folder of packages that has onnxruntime and numpy, and what these need."""
    folder = tmp_path_factory.mktemp("device")
    for name in NEEDED:
        found = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            (folder / top).symlink_to(found.locate_file(top))
    return folder


def alone(device: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a Python that has nothing but its standard library and a folder."""
    names = ",".join(BLOCKED)
    command = [sys.executable, "-I", "-S", "-c", ALONE, device, names, *words]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def results(package, device, tmp_path_factory):
    """What the package measured in such a Python, copied to where it is measured."""
    copied = tmp_path_factory.mktemp("copied") / "pi"
    shutil.copytree(package, copied)
    done = alone(device, copied / "measure.py", "--threads", 2)
    assert done.returncode == 0, done.stderr
    assert re.search(r"measure, \d+ s: loading 7 graphs", done.stdout)
    assert re.search(r"measure, \d+ s: 7 encoders, \d+ s to \d+ s", done.stdout)
    assert re.search(r"measure, \d+ s: measured times are certain to", done.stdout)
    again = alone(device, copied / "measure.py")
    assert again.returncode == 1
    assert "results.json exists; choose another --out" in again.stderr
    return json.loads((copied / "results.json").read_text())


def saved(folder: Path, data: object) -> Path:
    file = folder / "results.json"
    file.write_text(json.dumps(data))
    return file


@pytest.mark.slow
def test_a_package_gives_the_profile_that_this_machine_would(built, results, tmp_path):
    far = profile_from(built, saved(tmp_path, results))
    here = profile_model(built, HOW, RATE, quiet)
    for profile in (far, here):
        assert "Linux" not in sys.platform or "Linux" in profile.machine
        assert measuring.processor() in profile.machine
        assert re.search(r", onnxruntime \d+\.", profile.machine)
        assert "torch" not in profile.machine
    assert (far.threads, here.threads) == (2, 1)
    assert len(far.places) == len(here.places) > 2
    for one, other in zip(far.places, here.places, strict=True):
        assert dataclasses.replace(one, times=()) == dataclasses.replace(other, times=())
    for name in ("encoder", "size", "parameters", "macs", "seconds", "runtime", "int8"):
        assert getattr(far, name) == getattr(here, name)
    far = dataclasses.replace(far, spread=0.01)  # this machine may be busy
    assert Profile.from_plain(json.loads(json.dumps(far.plain())), "x") == far


def exact(built, results) -> tuple[dict, dict]:
    """Results with times that are known, and the medians by the keys of what is timed."""
    variants, rng = Variants(built.encoder), np.random.default_rng(0)
    keys = [key for key, _ in variants.plans()]
    medians = dict(zip(keys, 0.1 + rng.random(len(keys)), strict=True))
    times = {}
    for key, middle in medians.items():
        rounds = [middle * share for share in (0.99, 1.0, 1.01, 0.98, 1.02)]
        times[variants.name_of(key)] = [77.0, *rounds]  # the first one is not warm
    return {**results, "times": times}, medians


@pytest.mark.slow
def test_what_was_measured_becomes_the_tables(built, results, tmp_path):
    data, medians = exact(built, results)
    profile = profile_from(built, saved(tmp_path, data))
    fixed, places = places_of(Variants(built.encoder), medians)
    assert profile.fixed == pytest.approx(fixed)
    assert [*profile.places] == places
    width = 0.03 / 2 / math.sqrt(5)  # the quartiles are 0.985 and 1.015
    longest = max(medians.values())
    assert profile.spread == pytest.approx(width * longest / longest)


def changed(data: dict, *path: str, to: object) -> dict:
    """Results with another value at a path."""
    data = copy.deepcopy(data)
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to
    return data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["version"], 2, r"has no results of version 1\. Expected what measure\.py"),
        (["about"], [], r"is damaged \(TypeError: .*Expected what measure\.py of a"),
        (["about"], {}, r"is damaged \(KeyError: 'seconds'\)"),
        (["about", "seconds"], 1e9, r"command line: --seconds is 1000000000\.0"),
        (["about", "int8"], 1, r"is damaged \(TypeError: int8 is 1"),
        (["threads"], 0, r"is damaged \(ValueError: command line: --threads is 0"),
        (["machine"], "a\x1b[2J", r"is damaged \(TypeError: machine is 'a"),
        (["machine"], 1001 * "a", r"is damaged \(TypeError: machine is 'aaa"),
        (["times"], [], r"is damaged \(TypeError: times are \[\]"),
        (["about", "size"], 32, "is of an encoder with .*'size': 32.*; expected results"),
        (["about", "macs"], 1, "is of an encoder with .*'macs': 1,"),
        (["times"], {}, "has no times of 7 graphs, the first of which is 'no block'"),
        (["times", "a" * 99], [1.0], "has other times of 1 graphs, the first of .* 'aa"),
        (["times", "the whole encoder"], [1.0], r"has times of \[1, 6\] rounds"),
        (["times", "the whole encoder"], 1.0, r"has times of \[0, 6\] rounds"),
        *(
            (["times", "the whole encoder"], [1.0, 1.0, x, 1.0, 1.0, 1.0], message)
            for x, message in (
                (0.0, r"has a time of 0\.0 of 'the whole encoder'; expected a number in"),
                (-1.0, r"has a time of -1\.0 of"),
                (math.nan, "has a time of nan of"),
                (math.inf, "has a time of inf of"),
                ("1", "has a time of '1' of"),
                (True, "has a time of True of"),
            )
        ),
    ],
)
def test_results_that_cannot_be_right(path, value, message, built, results, tmp_path):
    data, _ = exact(built, results)
    file = saved(tmp_path, changed(data, *path, to=value))
    with pytest.raises(ValueError, match=message):
        profile_from(built, file)


@pytest.mark.slow
def test_what_are_no_results(built, results, tmp_path):
    for data in ([], {}):
        with pytest.raises(ValueError, match="has no results of version 1"):
            profile_from(built, saved(tmp_path, data))
    (tmp_path / "results.json").write_text('{"version": 1, ')
    for name in ("results.json", "none.json"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*\. Expected"):
            profile_from(built, tmp_path / name)
    data, _ = exact(built, results)
    few = {name: one[:3] for name, one in data["times"].items()}
    with pytest.raises(ValueError, match=r"has times of \[3\] rounds; expected .* 6 to"):
        profile_from(built, saved(tmp_path, {**data, "times": few}))


@pytest.fixture
def copied(package, tmp_path):
    return shutil.copytree(package, tmp_path / "pi")


@pytest.mark.slow
def test_a_package_that_is_not_whole_says_what_is_wrong(copied):
    manifest = copied / "manifest.json"
    text = json.loads(manifest.read_text())
    with pytest.raises(ValueError, match="--threads is 0; expected 1 to 1024"):
        measure(copied, quiet, threads=0)
    with pytest.raises(ValueError, match="--minutes is nan; expected 0 to 1440"):
        measure(copied, quiet, minutes=math.nan)
    manifest.write_text(json.dumps({**text, "noisiest": 1e-9}))
    with pytest.raises(ValueError, match=r"has a spread of .*Nothing was written\. Meas"):
        measure(copied, quiet)
    manifest.write_text(json.dumps({**text, "shape": [1, 9, 9]}))
    with pytest.raises(ValueError, match=r"onnxruntime cannot run .*\.onnx \(.*copy it"):
        measure(copied, quiet)
    for wrong in ({**text, "version": 2}, {**text, "graphs": []}, [], {"version": 1}):
        manifest.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"manifest\.json cannot be read \("):
            measure(copied, quiet)
    manifest.write_text(json.dumps(text))
    (copied / "3.onnx").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"onnxruntime cannot load .*3\.onnx \("):
        measure(copied, quiet)


@pytest.mark.slow
def test_the_program_says_what_it_lacks_and_leaves_nothing(copied, tmp_path):
    """Without numpy and onnxruntime, too."""
    (tmp_path / "none").mkdir()
    done = alone(tmp_path / "none", copied / "measure.py")
    assert done.returncode == 1
    assert (
        "measure: No module named 'numpy'; pip install onnxruntime numpy" in done.stderr
    )
    (copied / "manifest.json").unlink()
    done = alone(tmp_path / "none", copied / "measure.py")
    assert done.returncode == 1
    assert re.fullmatch(r"measure: .*manifest\.json cannot be read .*\n", done.stderr)
    assert not [*copied.glob("results*")]


def test_the_program_is_of_python_3_8():
    """In its grammar; that it runs there was tried by hand."""
    text = Path(measuring.__file__).read_text("utf-8")
    tree = ast.parse(text, feature_version=(3, 8))
    imported = {
        (node.module or "").split(".")[0]
        if isinstance(node, ast.ImportFrom)
        else node.names[0].name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
    }
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime"}


def test_calls_take_turns_and_each_is_warm(monkeypatch):
    monkeypatch.setattr(measuring, "OFTEN", 0.0)
    called, said = [], []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    times = time_in_turns(calls, said.append, minutes=0.0, fewest=3)
    assert {name: len(one) for name, one in times.items()} == dict.fromkeys("abc", 4)
    assert "".join(called) == "bbccaaccaabbaabbccbbccaa"
    assert said[0] == "round 1, 1 of 3"
    assert any(text.startswith("3 encoders, 0 s to 0 s") for text in said)
    assert re.fullmatch(
        r"round 4, 3 of 3, at most 0 s left, certain to [\d.]+%", said[-1]
    )
    medians, spread = medians_of({"a": [9.0, 1.0, 2.0, 3.0], "b": [9.0, 4.0, 4.0, 4.0]})
    assert medians == {"a": 2.0, "b": 4.0}
    low, _, high = statistics.quantiles([1.0, 2.0, 3.0], n=4)
    assert spread == pytest.approx((high - low) / 2 / math.sqrt(3) / 4.0)


def test_rounds_go_on_until_times_are_certain():
    """Unless time is over: to the most, where each call differs from the last."""
    clock = iter(range(10**6))
    noisy = {"a": lambda: sum(range(1000 * (next(clock) % 7 + 1)))}
    times = time_in_turns(noisy, quiet, minutes=1.0)
    assert len(times["a"]) == measuring.MOST + 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC\n", "AMD EPYC"),
        (
            "model name\t: ARMv7\nModel\t\t: Raspberry Pi 4 Model B\n",
            "Raspberry Pi 4 Mod",
        ),
        ("CPU part\t: 0xd0b\nHardware\t: Qualcomm SDM845\n", "Qualcomm SDM845"),
        ("CPU part\t: 0xd0b\nmodel name\t:\n", ""),
        (None, ""),
    ],
)
def test_the_processor_has_a_name(text, name, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(measuring, "CPUINFO", tmp_path / "cpuinfo")
    assert measuring.processor().startswith(name)
    assert measuring.processor()


def save_dense(folder: Path, **changes: int) -> None:
    """An experiment of plain ESPnet's, whose encoder has no convolution in front."""
    args = arguments(decoder=None, model="espnet", model_conf={"ctc_weight": 1.0})
    conf = CONFS["transformer"] | {"num_blocks": 2} | changes
    args.encoder, args.encoder_conf, args.optim = "transformer", conf, "adam"
    dense = ASRTask.build_model(copy.deepcopy(args))
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    torch.save(dense.state_dict(), folder / "model.pth")


@pytest.mark.slow
def test_the_command_writes_a_package_and_reads_what_it_measured(
    tmp_path, device, capsys, monkeypatch
):
    monkeypatch.setattr("espnet_l0prune.core.profile.NOISIEST", 3600.0)
    exp, pi, out = (tmp_path / name for name in ("exp", "pi", "device.json"))
    save_dense(exp)
    profile = ["profile", str(exp), "--checkpoint", "model.pth"]
    pack = [*profile, "--package", str(pi), "--seconds", "0.6", "--minutes", "0"]

    def refused(*words: object) -> str:
        assert main([*profile, *map(str, words)]) == 1
        return capsys.readouterr().err

    both = ["--from", pi / "results.json", "--out", out]
    assert "--from is set with --package" in refused("--from", out, "--package", pi)
    assert "--seconds is set with --from; expected it" in refused(*both, "--seconds", 5)
    assert "--int8 is set with --from; expected it" in refused(*both, "--int8")
    assert "is torch with --package" in refused("--package", pi, "--runtime", "torch")
    with pytest.raises(SystemExit):
        main(profile)
    assert "--out --package is required" in capsys.readouterr().err

    assert main([*pack, "--int8", "--threads", "2"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "7 graphs" in shown
    assert "for 0.6 s of audio, onnxruntime, int8, 2 threads" in shown
    assert "python3 pi/measure.py" in shown
    assert f"{exp} --checkpoint model.pth --from results.json" in shown
    files = {file.name for file in pi.iterdir()}
    assert files == {"measure.py", "manifest.json", *(f"{i}.onnx" for i in range(7))}
    assert "pi exists; expected a new folder" in refused(*pack[4:])

    done = alone(device, pi / "measure.py", "--minutes", 0.001)
    assert done.returncode == 0, done.stderr
    assert "has results.json beside an earlier package" in refused(*pack[4:], "--force")
    assert main([*profile, *map(str, both)]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert "the encoder, 0.6 s of audio, onnxruntime, int8, 2 threads" in shown
    assert f"on {measuring.processor()}" in shown
    found = json.loads(out.read_text())
    assert (found["int8"], found["threads"], found["runtime"]) == (True, 2, "onnxruntime")
    assert "exists; choose another --out" in refused(*both)
    assert os.listdir(tmp_path).count("device.json.part") == 0

    save_dense(tmp_path / "other", linear_units=9)
    profile[1] = str(tmp_path / "other")
    message = refused("--from", pi / "results.json", "--out", tmp_path / "b.json")
    assert "is of an encoder with" in message

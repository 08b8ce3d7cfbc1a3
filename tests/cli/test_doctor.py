import importlib.metadata
import platform
import runpy
import subprocess
import sys
import sysconfig
from pathlib import Path

import packaging
import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import espnet_l0prune
from espnet_l0prune import doctor
from espnet_l0prune.cli import main
from espnet_l0prune.core.python import run_python

ROOT = Path(__file__).parents[2]


# What a command imports, and what doctor and ESPnet's packing do in Pythons of their own.
STRANGERS = ("torch", "yaml", "numpy", "espnet2", "typeguard", "shtab", "torchaudio")


def strangers_folder(folder: Path) -> Path:
    """A folder with modules that leave a trace where they run."""
    folder.mkdir()
    for name in STRANGERS:
        code = f"open({str(folder / 'ran')!r}, 'a').write({name!r})\nraise ImportError"
        (folder / f"{name}.py").write_text(code)
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)
    return folder


@pytest.mark.slow
def test_a_sound_installation(tmp_path, monkeypatch, capsys):
    """Whatever is in the current folder."""
    monkeypatch.chdir(strangers_folder(tmp_path / "cwd"))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.count("ok ") == 5
    assert "BAD" not in out
    assert not Path("ran").exists()


def test_nothing_of_the_current_folder_runs(tmp_path):
    folder = strangers_folder(tmp_path / "cwd")
    code = "import sys, yaml; print(yaml.__file__, *sys.argv[1:])"
    done = run_python(code, "a", "b c", cwd=folder)
    assert done.stdout.endswith("yaml/__init__.py a b c\n")
    # `python -m` has put the folder on the path of all that is imported
    command = [sys.executable, "-m", "espnet_l0prune", "completion", "bash"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0
    assert not (folder / "ran").exists()


def fake_package(folder: Path, name: str, code: str) -> None:
    (folder / name / "lib").mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)


def test_torchaudio_that_cannot_load_is_mended(tmp_path, monkeypatch):
    """A package whose import fails as long as its library is there."""
    code = (
        "import pathlib\n"
        "if list((pathlib.Path(__file__).parent / 'lib').glob('*.so')):\n"
        "    raise OSError('Could not load this library')\n"
    )
    fake_package(tmp_path, "torchaudio", code)
    library = tmp_path / "torchaudio/lib/native.so"
    library.write_text("not a library")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    checks = {c.name: c for c in doctor.examine()}
    assert "doctor --fix" in checks["torchaudio"].remedy
    assert doctor.mend_torchaudio() == [tmp_path / "torchaudio/lib_cannot_load/native.so"]
    assert not library.exists()
    assert doctor.mend_torchaudio() == []


def test_where_nothing_is_installed(tmp_path):
    """What is missing is named; of versions nothing is known."""
    for package in (espnet_l0prune, packaging):
        source = Path(package.__file__).parent
        (tmp_path / source.name).symlink_to(source)
    code = (
        "from espnet_l0prune import doctor\n"
        "print(doctor.examine()[-1], [doctor.remedy_for('torch', '1.0')])"
    )
    command = [sys.executable, "-S", "-c", code]
    # a Python that it starts would have a site again, and import ESPnet from it
    environment = {"PYTHONPATH": str(tmp_path), "ESPNET_L0PRUNE_AUTOLOAD": "0"}
    # there, for the checkout may hold an egg-info that says what torch should be
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("Check(name='torch', found='not installed', ")
    assert "run `make env`, or `pip install torch`" in done.stdout
    assert done.stdout.endswith(" ['']\n")


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("torch", "2.9.1"),
        ("torch", "2.12.1+cu130"),
        ("torch", "2.15.0"),
        ("espnet", "202412"),
        ("python", "3.10.13"),
        ("python", "3.14.0"),
    ],
)
def test_versions_outside_the_matrix(package, version):
    """pip does not look at them: it may not touch what is there."""
    remedy = doctor.remedy_for(package, version)
    assert remedy.startswith(f"expected {package} ")
    assert "install such a version" in remedy


@pytest.mark.parametrize("package", ["python", "torch", "torchaudio", "espnet"])
def test_versions_of_today(package):
    python = package == "python"
    version = platform.python_version() if python else importlib.metadata.version(package)
    assert not doctor.remedy_for(package, version)
    assert doctor.remedy_for("torch", "2.12") == (
        f"expected torch {doctor.bounds_of('torch')}: install such a version"
    )
    assert not doctor.remedy_for("torch", "2.13.0+cpu")


def test_bounds_are_those_of_setup(monkeypatch):
    found = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: found.update(arguments))
    runpy.run_path("setup.py")
    assert doctor.bounds_of("python") == SpecifierSet(found["python_requires"])
    (torch,) = (x for x in found["extras_require"]["espnet"] if "torch>" in x)
    assert doctor.bounds_of("torch") == Requirement(torch).specifier


def test_registration_turned_off(monkeypatch):
    monkeypatch.setenv("ESPNET_L0PRUNE_AUTOLOAD", "0")
    assert "turned off" in doctor.examine_registration().found


def test_enable_and_disable(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert main(["enable"]) == 0
    written = tmp_path / "espnet_l0prune.pth"
    assert written.read_text() == (ROOT / "espnet_l0prune.pth").read_text()
    # left behind by an uninstalled package, it is silent
    code = f"import site; site.addsitedir({str(tmp_path)!r}); print('started')"
    command = [sys.executable, "-I", "-S", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("started\n", "")
    assert main(["disable"]) == 0
    assert main(["disable"]) == 0
    assert not list(tmp_path.iterdir())

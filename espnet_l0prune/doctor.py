"""The doctor checks an installation, and says what to do about each thing that is wrong.

The usual registry's torchaudio wheel links CUDA. Beside a CPU-only torch its native
libraries cannot load, so that `import torchaudio` fails, and ESPnet with it. Without
these libraries torchaudio works as plain Python, which is all that ESPnet needs.
`mend_torchaudio` moves them aside into another folder, but only if they cannot load.
"""

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from espnet_l0prune.core.python import last_line, run_python

REGISTRATION = """
import sys, torchaudio, espnet2.tasks.asr as asr
known = "l0_conformer" in asr.encoder_choices.classes
if not known and "espnet_l0prune" in sys.modules:
    from espnet_l0prune.autoload import register
    register(asr.__name__)  # it stood aside: this raises the reason
sys.exit(0 if known else 3)
"""


@dataclass
class Check:
    """A `Check` is one thing that was looked at; its `remedy` is empty if all is well."""

    name: str
    found: str
    remedy: str = ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run(code: str, register: bool = False) -> CompletedProcess:
    environment = dict(os.environ)
    if not register:  # a broken registration would look like a broken ESPnet
        environment["ESPNET_L0PRUNE_AUTOLOAD"] = "0"
    return run_python(code, env=environment)


def native_libraries() -> list[Path]:
    """Return the compiled parts of torchaudio, without importing it."""
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or spec.origin is None:
        return []
    return sorted((Path(spec.origin).parent / "lib").glob("*.so"))


def mend_torchaudio() -> list[Path]:
    """Move native libraries aside that cannot load, and return those that were moved.

    If that does not help, they are moved back.
    """
    if not _is_torchaudio_broken() or _run("import torch").returncode:
        return []
    moved = {}
    for library in native_libraries():
        aside = library.parent.with_name("lib_cannot_load")
        aside.mkdir(exist_ok=True)
        moved[library] = library.rename(aside / library.name)
    if _is_torchaudio_broken():
        for library, aside in moved.items():
            aside.rename(library)
        return []
    return [*moved.values()]


def _is_torchaudio_broken() -> bool:
    return _run("import torchaudio").returncode != 0


def bounds_of(package: str) -> SpecifierSet:
    """Return the versions of a package, or of Python, that setup.py allows here.

    pip is not asked, since it might exchange torch, as setup.py explains. All versions
    are allowed if our package is not installed.
    """
    try:
        about = importlib.metadata.metadata("espnet_l0prune")
    except importlib.metadata.PackageNotFoundError:
        return SpecifierSet()
    if package == "python":
        return SpecifierSet(about["Requires-Python"])
    specifiers = SpecifierSet()
    for requirement in map(Requirement, about.get_all("Requires-Dist", [])):
        marker = requirement.marker
        if requirement.name == package and (
            marker is None or marker.evaluate({"extra": "espnet"})
        ):
            specifiers &= requirement.specifier
    return specifiers


def remedy_for(package: str, version: str) -> str:
    """Return what to do about a version outside `bounds_of`, or an empty text."""
    bounds = bounds_of(package)
    if bounds.contains(version, prereleases=True):
        return ""
    return f"expected {package} {bounds}: install such a version"


def examine() -> list[Check]:
    """Check Python, torch, torchaudio, ESPnet and the registration, in this order.

    Parts after a broken one are not checked. An ESPnet that knows our names has imported
    all the others, and then none is imported again.
    """
    registration = examine_registration()
    python = platform.python_version()
    checks = [Check("Python", python, remedy_for("python", python))]
    install = "run `make env`, or `pip install {0}` in this environment"
    for package in ("torch", "torchaudio", "espnet"):
        version = _version(package)
        if version is None:
            checks.append(Check(package, "not installed", install.format(package)))
            return checks
        module = package if package != "espnet" else "espnet2.tasks.asr"
        result = _run(f"import {module}") if registration.remedy else None
        if result is None or result.returncode == 0:
            checks.append(Check(package, version, remedy_for(package, version)))
            continue
        remedy = f"reinstall {package}: its import fails"
        linked = "OSError" in last_line(result)
        if package == "torchaudio" and linked and native_libraries():
            remedy = (
                "its native libraries need a CUDA build of torch. On a machine without a "
                "GPU run `espnet-l0prune doctor --fix`, which moves them aside; with a "
                "GPU, install a torch with CUDA"
            )
        checks.append(Check(package, f"{version}: {last_line(result)}", remedy))
        return checks
    return [*checks, registration]


def examine_registration() -> Check:
    """Ask a new Python, as ESPnet's commands are one, whether it knows our names."""
    if os.environ.get("ESPNET_L0PRUNE_AUTOLOAD") == "0":
        remedy = "unset ESPNET_L0PRUNE_AUTOLOAD, or import espnet_l0prune yourself"
        return Check("registration", "turned off by ESPNET_L0PRUNE_AUTOLOAD=0", remedy)
    result = _run(REGISTRATION, register=True)
    if result.returncode == 0:
        return Check("registration", "ESPnet knows l0_conformer")
    if result.returncode == 3:
        remedy = "run `espnet-l0prune enable` (an editable install needs it once)"
        return Check("registration", "ESPnet does not know l0_conformer", remedy)
    other = "remove the other extension, or set ESPNET_L0PRUNE_AUTOLOAD=0"
    remedy = remedy_for("espnet", _version("espnet") or "0") or other
    return Check("registration", last_line(result), remedy)


def why_aside(error: Exception) -> str:
    """Return the message for when we cannot register, and ESPnet goes on without us."""
    version = _version("espnet") or "0"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    remedy = remedy_for("espnet", version) or "see `espnet-l0prune doctor`"
    return (
        "espnet_l0prune stands aside: it cannot register with ESPnet "
        f"{version} ({what}); {remedy}"
    )

"""Open the model zoo's zips, whoever made them: nothing is run, and nothing is written
outside the folder that was asked for."""

import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import yaml

from espnet_l0prune.core.files import UNREADABLE
from espnet_l0prune.plugin.experiment import read_mapping

LARGEST = 32 * 2**30  # bytes of all files together
EXPANSION = 200  # how many times larger than packed: weights hardly shrink at all
SMALL = 2**24  # bytes; texts below it may expand as they like


def unpack(archive: Path, folder: Path) -> None:
    """Extract the regular files of a zip into a new folder: all of them, or nothing.

    Raises:
        ValueError: no zip; a name that leads out of the folder, a link or a device; files
            that would fill the disk; a folder that exists
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; expected a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        try:
            with zipfile.ZipFile(archive) as opened:
                members = [m for m in opened.infolist() if not m.is_dir()]
                check_members(members, archive)
                for member in members:
                    target = Path(part, "unpacked", member.filename)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as source, target.open("xb") as file:
                        shutil.copyfileobj(source, file)
        except UNREADABLE as e:
            raise ValueError(
                f"{archive} cannot be unpacked ({e}); expected a zip of ESPnet's model "
                "zoo"
            ) from e
        Path(part, "unpacked").rename(folder)


def check_members(members: list[zipfile.ZipInfo], archive: Path) -> None:
    """Raise ValueError for a zip that is not just files within its own folder."""

    def refuse(what: str) -> ValueError:
        return ValueError(f"{archive} is not safe to unpack: {what}; nothing was written")

    names = set()
    for member in members:
        name, parts = member.filename, PurePosixPath(member.filename).parts
        windows = PureWindowsPath(name)
        if not parts or ".." in parts or name.startswith("/") or "\\" in name:
            raise refuse(f"the name {name!r} leads out of the folder")
        if windows.drive or windows.root or not name.isprintable():
            raise refuse(f"the name {name!r} leads out of the folder")
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise refuse(f"{name!r} is a link or a device")
        if name in names:
            raise refuse(f"{name!r} is in it twice")
        names.add(name)
        if member.file_size > max(SMALL, EXPANSION * member.compress_size):
            raise refuse(
                f"{name!r} expands from {member.compress_size} to {member.file_size} "
                "bytes"
            )
    if not names:
        raise refuse("it has no files")
    total = sum(member.file_size for member in members)
    if total > LARGEST:
        raise refuse(f"its files have {total} bytes; expected at most {LARGEST}")


def unpack_model(archive: Path, folder: Path) -> tuple[Path, Path]:
    """Extract a packed recognizer; its configuration then names the files as they lie.

    Returns:
        configuration and model file

    Raises:
        ValueError: see `unpack`; a zip that is no packed recognizer
    """
    unpack(archive, folder)
    try:
        return _find_model(folder)
    except ValueError:
        shutil.rmtree(folder)
        raise


def _find_model(folder: Path) -> tuple[Path, Path]:
    expected = "a zip that espnet2.bin.pack made of an asr, s2t, slu or st model"
    meta = read_mapping(folder / "meta.yaml", "the zip's", expected)
    packed = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    found = []
    for group, suffix in (("yaml_files", "_train_config"), ("files", "_model_file")):
        listed = meta.get(group)
        names = [
            name
            for key, name in (listed.items() if isinstance(listed, dict) else ())
            if str(key).endswith(suffix)
            and not str(key).startswith("lm_")
            and isinstance(name, str)
        ]
        if len(names) != 1 or names[0] not in packed:
            raise ValueError(
                f"meta.yaml of the zip has {group}: {listed}; expected {expected}, and "
                "its file in the zip"
            )
        found.append(folder / names[0])
    config = read_mapping(found[0], "configuration", expected)
    text = yaml.safe_dump(_placed(config, packed, folder), sort_keys=False)
    found[0].write_text(text, "utf-8")
    return found[0], found[1]


def _placed(value, packed: set[str], folder: Path, seen: dict | None = None):
    """A configuration in which packed files are named by where they are now."""
    seen = {} if seen is None else seen
    if id(value) in seen:  # by an alias, of which a few make a billion
        return seen[id(value)]
    found = value
    if isinstance(value, dict):
        found = {k: _placed(v, packed, folder, seen) for k, v in value.items()}
    elif isinstance(value, list):
        found = [_placed(v, packed, folder, seen) for v in value]
    elif isinstance(value, str) and value in packed:
        found = str(folder / value)
    seen[id(value)] = found
    return found

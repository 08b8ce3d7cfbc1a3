"""The model zoo's zips are opened safely, whoever made them.

Nothing of them is run, and nothing is written outside the folder that was asked for.
"""

import reprlib
import shutil
import stat
import struct
import tempfile
import unicodedata
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

import yaml

from espnet_l0prune.core.files import NO_ROOM, UNREADABLE
from espnet_l0prune.core.reading import PACKED, open_binary
from espnet_l0prune.plugin.experiment import read_mapping

LARGEST = 32 * 2**30  # bytes of all files together
EXPANSION = 20  # how many times larger than the zip they may be: weights hardly shrink
SMALL = 2**24  # bytes; texts below it may expand as they like
MOST_FILES = 10_000
LONGEST_NAME, DEEPEST = 200, 20  # letters in a name; folders within each other


def unpack(archive: Path, folder: Path) -> None:
    """Extract the regular files of a zip into a new folder: all of them, or nothing.

    The number and the sizes that the zip states are checked first. No file is written
    larger than stated, since neither stored nor deflated ones can expand further.

    Raises:
        ValueError: a file that is not a zip; see `check_members`; too little space; a
            folder that exists
        OSError: the space ran out meanwhile
    """
    if folder.exists():
        raise ValueError(f"{folder} exists; expected a new folder")
    try:
        with open_binary(archive) as file, zipfile.ZipFile(file) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            check_members(members, archive)
            folder.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder.parent).free
            total = sum(member.file_size for member in members)
            if total > free:
                raise _refused(archive, f"it needs {total} bytes, and {free} are free")
            with tempfile.TemporaryDirectory(dir=folder.parent) as part:
                for member in members:
                    target = Path(part, "unpacked", member.filename)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(member) as source, target.open("xb") as copy:
                        shutil.copyfileobj(source, copy)
                Path(part, "unpacked").rename(folder)
    except (*UNREADABLE, struct.error) as e:
        if isinstance(e, OSError) and e.errno in NO_ROOM:
            raise
        raise ValueError(
            f"{archive} cannot be unpacked ({e}); expected a zip of ESPnet's model zoo"
        ) from e


def check_members(members: list[zipfile.ZipInfo], archive: Path) -> None:
    """Raise ValueError for a zip that holds more than files within its own folder.

    Refused are names that lead out of it, links, devices, and one file over another; also
    files that are too many, too large for the zip's size, or compressed as ESPnet never
    does.
    """
    if not members:
        raise _refused(archive, "it has no files")
    if len(members) > MOST_FILES:
        raise _refused(archive, f"it has {len(members)} files, more than {MOST_FILES}")
    names: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for member in members:
        name, path = member.filename, PurePosixPath(member.filename)
        windows = PureWindowsPath(name)
        if not path.parts or ".." in path.parts or path.root or "\\" in name:
            raise _refused(archive, f"the name {name!r} leads out of the folder")
        if windows.drive or windows.root or not name.isprintable():
            raise _refused(archive, f"the name {name!r} leads out of the folder")
        if len(path.parts) > DEEPEST or max(map(len, path.parts)) > LONGEST_NAME:
            raise _refused(archive, f"the name {name[:LONGEST_NAME]!r}... is too long")
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise _refused(archive, f"{name!r} is a link or a device")
        if member.compress_type not in PACKED:
            raise _refused(archive, f"{name!r} is neither stored nor deflated")
        alike = PurePosixPath(unicodedata.normalize("NFC", str(path)).casefold())
        if alike in names:  # some file systems take these names for the same
            raise _refused(archive, f"{name!r} is in it twice")
        names.add(alike)
        folders.update(alike.parents)
    both = sorted(map(str, names & folders))
    if both:
        raise _refused(archive, f"{both[0]!r} is a file and a folder")
    total = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    most = min(max(SMALL, EXPANSION * packed), LARGEST)
    if total > most:
        raise _refused(
            archive,
            f"its files expand from {packed} to {total} bytes; expected at most {most}",
        )


def _refused(archive: Path, what: str) -> ValueError:
    return ValueError(f"{archive} is not safe to unpack: {what}; nothing was written")


def unpack_model(archive: Path, folder: Path) -> tuple[Path, Path]:
    """Extract a packed recognizer; its configuration then names the files where they lie.

    Returns:
        the configuration file and the model file

    Raises:
        ValueError: see `unpack`; a zip that is not a packed recognizer
    """
    unpack(archive, folder)
    try:
        return _find_model(folder)
    except ValueError:
        shutil.rmtree(folder)
        raise


def _find_model(folder: Path) -> tuple[Path, Path]:
    expected = "a zip that espnet2.bin.pack made of an asr, mt, s2t, slu or st model"
    meta = read_mapping(folder / "meta.yaml", "the zip's", expected)
    packed = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    paths = []
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
                f"meta.yaml of the zip has {group}: {reprlib.repr(listed)}; expected "
                f"{expected}, and its file in the zip"
            )
        paths.append(folder / names[0])
    config = read_mapping(paths[0], "configuration", expected)
    text = yaml.safe_dump(_placed(config, packed, folder), sort_keys=False)
    paths[0].write_text(text, "utf-8")
    return paths[0], paths[1]


def _placed(value, packed: set[str], folder: Path):
    """Return a configuration in which packed files are named by where they are now."""
    if isinstance(value, dict):
        return {k: _placed(v, packed, folder) for k, v in value.items()}
    if isinstance(value, list):
        return [_placed(v, packed, folder) for v in value]
    return str(folder / value) if isinstance(value, str) and value in packed else value

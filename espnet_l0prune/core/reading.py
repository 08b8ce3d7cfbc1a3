"""All files that a stranger may have made are read here: text, YAML, JSON and tensors.

What is returned is plain data that was read in bounded time and memory, and no code of
the file has run. Only regular files are read: no pipe, which might never end, no device
and no folder. Each function raises ValueError with the reason alone, because only its
caller knows what the file was for.
"""

import contextlib
import io
import json
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from espnet_l0prune.core.pickles import TORCH_MAGIC, check_pickle, name_of

LARGEST_TEXT = 2**26  # characters; the longest lists of tokens have about 2**20
LARGEST_JSON = 2**24  # characters; the values take up to 30 times as much memory
DEEPEST = 100  # the most levels of lists and mappings within each other
NODE = 64  # characters that a value counts as, in addition to its text
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that torch knows
EXPANSION = 20  # the most that a recompressed checkpoint may expand

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file and nothing else, without waiting for a writer."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no regular file")
    return descriptor


def open_binary(path: str | Path) -> IO[bytes]:
    """Open a regular file for reading; links are followed.

    Raises:
        OSError: the file does not exist, or may not be read
        ValueError: a pipe or a device
    """
    return open(path, "rb", opener=_open_regular)


def read_text(path: str | Path, largest: int = LARGEST_TEXT) -> str:
    """Read a text in UTF-8 of at most `largest` characters.

    Raises:
        ValueError: a file that is missing, not regular, not UTF-8, or too large
    """
    try:
        with open(path, encoding="utf-8", opener=_open_regular) as file:
            text = file.read(largest + 1)
    except OSError as e:
        raise ValueError(e.strerror or str(e)) from e
    if len(text) > largest:
        raise ValueError(f"it has more than {largest} characters")
    return text


class _PlainLoader(Loader):
    """This is YAML's safe loader, but numbers must fit into 64 bits."""


def _number(loader: Any, node: yaml.ScalarNode) -> int | float:
    """Read a number of YAML; one of a million digits would take for ever."""
    if len(node.value) <= 128:
        if node.tag.endswith(":float"):
            return loader.construct_yaml_float(node)
        number = loader.construct_yaml_int(node)
        if -(2**63) <= number < 2**64:
            return number
    raise ValueError("it has a number of more than 64 bits")


def _integer(text: str) -> int:
    """Read an integer of JSON."""
    if len(text) > 20:
        raise ValueError("it has an integer of more than 64 bits")
    return int(text)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _number)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _number)


def read_yaml(path: str | Path) -> Any:
    """Read YAML as plain data; aliases, which ESPnet writes, may not multiply it.

    Before any data are made, the values are counted as often as aliases and merge keys
    repeat them. A value counts as 64 characters plus its text, and all values together
    may count as `LARGEST_TEXT` at most.

    Raises:
        ValueError: see `read_text`; text that is not YAML, a tag that is not plain data,
            an alias inside what it names, values nested too deep or too many, too long a
            number
    """
    text = read_text(path)
    try:
        _check_events(yaml.parse(text, Loader))
        return yaml.load(text, _PlainLoader)
    except yaml.YAMLError as e:
        raise ValueError(" ".join(str(e).split())) from e
    except (TypeError, KeyError, IndexError, AttributeError, OverflowError) as e:
        # PyYAML raises these for a tag that does not fit its value, such as `!!bool x`
        raise ValueError(f"it has a value that its tag does not fit ({e})") from e


def _check_events(events: Iterator[yaml.Event]) -> None:
    """Raise ValueError for YAML that is too deep, or too large once it is expanded."""
    # what each anchor expands to, in characters; None while the value is still open
    anchored: dict[str | None, int | None] = {}
    open_: list[tuple[str | None, int]] = []  # open collections: anchor, size before
    size = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            more = anchored.get(event.anchor, 0)  # PyYAML refuses an unknown anchor
            if more is None:
                raise ValueError(f"its value {event.anchor} holds itself")
            size += more
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, size))
            if event.anchor is not None:
                anchored[event.anchor] = None
            if len(open_) > DEEPEST:
                raise ValueError(f"its values are nested more than {DEEPEST} deep")
            size += NODE
        elif isinstance(event, yaml.ScalarEvent):
            more = NODE + len(event.value)
            size += more
            if event.anchor is not None:
                anchored[event.anchor] = more
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                anchored[anchor] = size - before
        if size > LARGEST_TEXT:
            raise ValueError("its values are too many, as its aliases repeat them")


def read_json(path: str | Path) -> Any:
    """Read JSON as plain data.

    NaN and Infinity are floats, as Python writes them, and a float that is too large is
    infinite.

    Raises:
        ValueError: see `read_text`; text that is not JSON, values nested too deep, an
            integer of more than 64 bits
    """
    text = read_text(path, LARGEST_JSON)
    try:
        data = json.loads(text, parse_int=_integer)
    except RecursionError as e:
        raise ValueError("its values are nested too deep") from e
    parts: list[Any] = [[data]]
    for _ in range(DEEPEST + 1):
        lists = [p.values() if isinstance(p, dict) else p for p in parts]
        parts = [v for part in lists for v in part if isinstance(v, (dict, list))]
        if not parts:
            return data
    raise ValueError(f"its values are nested more than {DEEPEST} deep")


def read_tensors(path: str | Path, types: Sequence[Any] = ()) -> dict:
    """Read a dict of tensors, numbers, strings, lists and dicts that torch.save wrote.

    The file may have been recompressed. The checksum of each part is compared, which
    torch does not do; files from before torch 1.6 have none. A file that was not
    recompressed is mapped into memory, not copied.

    Args:
        types: further types and functions that the file may use, as
            `torch.serialization.safe_globals` takes them

    Raises:
        ValueError: a file that is missing, not regular, not a checkpoint or damaged, or
            that holds other things than these, or more than its size allows
    """
    try:
        with open_binary(path) as file, contextlib.ExitStack() as stack:
            source, mapped = _plain_form(file, path, stack, {name_of(t) for t in types})
            with torch.serialization.safe_globals(list(types)):
                state = torch.load(
                    source, map_location="cpu", weights_only=True, mmap=mapped
                )
    except Exception as e:  # torch.load raises almost anything for a damaged file
        reason = (str(e).splitlines() or [""])[0] or type(e).__name__
        if isinstance(e, OSError) and e.strerror:
            reason = e.strerror
        raise ValueError(reason) from e
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, no dict")
    return state


def _plain_form(
    file: IO[bytes], path: str | Path, stack: contextlib.ExitStack, names: set[str]
) -> tuple[IO[bytes] | str | Path, bool]:
    """Check a checkpoint's parts and what its pickle would do.

    Returns:
        what torch.load reads, and whether it can be mapped into memory
    """
    if file.read(4) != b"PK\3\4":
        file.seek(0)
        pickled = io.BytesIO(file.read(LARGEST_TEXT))
        if check_pickle(pickled, names) != TORCH_MAGIC:
            raise ValueError("it is no file that torch.save wrote")
        for _ in range(4):  # the version, the machine, the values, the storages' names
            check_pickle(pickled, names)
        file.seek(0)
        return file, False
    archive = stack.enter_context(zipfile.ZipFile(file))
    members = [member for member in archive.infolist() if not member.is_dir()]
    size = os.fstat(file.fileno()).st_size
    check_parts(members, size)
    for member in members:
        if member.filename.endswith("data.pkl"):
            with archive.open(member) as part:
                check_pickle(io.BytesIO(part.read(LARGEST_TEXT)), names)
    if all(member.compress_type == zipfile.ZIP_STORED for member in members):
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"it is damaged: {damaged} has another checksum")
        return path, True
    stored = tempfile.TemporaryFile()  # noqa: SIM115
    stack.callback(stored.close)
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_STORED) as copy:
        for member in members:
            plain = zipfile.ZipInfo(member.filename)
            plain.file_size = member.file_size
            with archive.open(member) as source, copy.open(plain, "w") as target:
                shutil.copyfileobj(source, target, 2**20)
    stored.seek(0)
    return stored, False


def check_parts(members: list[zipfile.ZipInfo], size: int) -> None:
    """Raise ValueError for parts of a checkpoint that torch and Python would read
    differently, or that hold more than the file's size in bytes allows."""
    if len({member.filename for member in members}) != len(members):
        raise ValueError("it has a part twice")
    if any(member.compress_type not in PACKED for member in members):
        raise ValueError("it is compressed in a way that torch does not know")
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its parts overlap")
    if sum(member.file_size for member in members) > EXPANSION * size:
        raise ValueError(f"it expands to more than {EXPANSION} times its size")

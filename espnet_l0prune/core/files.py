"""Files that are there to their last byte, or not at all."""

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from espnet_l0prune.core.reading import check_parts, open_binary

UNREADABLE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,  # a compression that Python does not know
    RuntimeError,  # encrypted
    UnicodeDecodeError,  # of a name
)


def is_whole(path: Path) -> bool:
    """Whether a file that torch saved is there, to its last byte, undamaged."""
    try:
        with open_binary(path) as file, zipfile.ZipFile(file) as archive:
            check_parts(archive.infolist(), os.fstat(file.fileno()).st_size)
            return archive.testzip() is None
    except (*UNREADABLE, ValueError):
        return False


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file elsewhere first, so that it is never seen half-written.

    Args:
        write: is called with the path to write to
    """
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)

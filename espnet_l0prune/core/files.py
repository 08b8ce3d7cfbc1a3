"""Files and folders that are there to their last byte, or not at all.

All that the package writes goes through here: it is written beside its place first, and
takes it once it is whole. Until then an earlier result stays as it is, and of a failure
or an interrupt nothing is left.
"""

import contextlib
import errno
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

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
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Write = Callable[[Path], object]


def is_whole(path: Path) -> bool:
    """Whether a file that torch saved is there, to its last byte, undamaged."""
    try:
        with open_binary(path) as file, zipfile.ZipFile(file) as archive:
            check_parts(archive.infolist(), os.fstat(file.fileno()).st_size)
            return archive.testzip() is None
    except (*UNREADABLE, ValueError):
        return False


def check_file(path: Path, force: bool = False) -> None:
    """Raise ValueError where a file may not be written: one is there and no `force`, or
    something that is no file, such as a folder, a device or a pipe."""
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{path} is no file; expected the name of one to write")
    if not force:
        raise ValueError(f"{path} exists; choose another --out, or give --force")


def save(state: object, path: Path) -> None:
    """Save with torch, in the system's own words where that fails: torch tells of a full
    disk as of a position in a zip.

    Raises:
        OSError: the disk is full, among others
    """
    with _named(path):
        try:
            with path.open("wb") as file:
                torch.save(state, file)
        except RuntimeError as e:
            if isinstance(e.__context__, OSError):
                raise e.__context__ from None
            raise


def replace(path: Path, write: Write, force: bool = True) -> None:
    """Write one file; see `replace_all`."""
    replace_all({path: write}, force)


def replace_all(files: Mapping[Path, Write], force: bool = True) -> None:
    """Write files, of which none takes its place before all are whole.

    Args:
        files: by each file's path, what is called with the path to write to; folders are
            made as they are needed
        force: whether files that are there may go

    Raises:
        ValueError: see `check_file`; somebody may have come first while we wrote
        OSError: one cannot be written
    """
    parts = {path: path.with_name(path.name + ".part") for path in files}
    with contextlib.ExitStack() as undone:
        for path, part in parts.items():
            check_file(path, force)
            undone.enter_context(_parents(path))
            undone.enter_context(_named(path))
            undone.callback(part.unlink, missing_ok=True)
            part.unlink(missing_ok=True)  # of a run that was killed
            files[path](part)
            _sync(part)
        for path in parts:
            check_file(path, force)
        for path, part in parts.items():
            os.replace(part, path)


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A hidden folder on the disk that `out` is to be on, removed in the end."""
    place = {"prefix": f".{out.name}.", "dir": out.parent}
    with _parents(out), _named(out), tempfile.TemporaryDirectory(**place) as folder:
        yield Path(folder)


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make a folder to fill, and remove it with all that is in it where that fails.

    Raises:
        ValueError: it exists; whoever made it keeps it
        OSError: it cannot be made
    """
    with _parents(out), _named(out):
        try:
            out.mkdir()
        except FileExistsError as e:
            raise ValueError(
                f"{out} exists; expected a new folder. Choose another --out."
            ) from e
        try:
            yield
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise


@contextlib.contextmanager
def new_folder(out: Path, check: Callable[[], object]) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out` when it is.

    An earlier `out` is moved beside first, as NAME.TOKEN.old: there it is found after a
    crash in between. It goes once its place is taken, or else comes back.

    Args:
        check: raises where what is at `out` may not be replaced: it is called when all
            is filled, since somebody may have come first

    Raises:
        OSError: the folder cannot be filled
    """
    with beside(out) as folder:
        new, old = folder / "new", out.with_name(f"{out.name}{folder.suffix}.old")
        new.mkdir()
        yield new
        for file in filter(Path.is_file, new.rglob("*")):
            _sync(file)
        check()
        try:
            if out.exists():
                out.rename(old)
            new.rename(out)
        finally:
            if new.exists() and old.exists():
                old.rename(out)
            elif old.exists():
                shutil.rmtree(old)


def _sync(file: Path) -> None:
    """Have the system write a file to the disk, which may be full only now."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


@contextlib.contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the folder that a path is in, and remove what was made where that was for
    nothing."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        if missing:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Give an error of writing that names no file, such as a full disk's, this one."""
    try:
        yield
    except OSError as e:
        if e.errno is not None and e.filename is None:
            e.filename = str(path)
        raise

"""Files and folders are written to their last byte, or not at all.

All that the package writes goes through here. It is first written beside its place, and
takes the place once it is whole. Until then an earlier result stays as it is, and a
failure or an interrupt leaves nothing behind.
"""

import contextlib
import errno
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from espnet_l0prune.core.reading import check_parts, open_binary

UNREADABLE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,  # the compression is one that Python does not know
    RuntimeError,  # the file is encrypted
    UnicodeDecodeError,  # a name is no text
)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Write = Callable[[Path], object]


def is_whole(path: Path) -> bool:
    """Return whether a file that torch saved is there, complete and undamaged."""
    try:
        with open_binary(path) as file, zipfile.ZipFile(file) as archive:
            check_parts(archive.infolist(), os.fstat(file.fileno()).st_size)
            return archive.testzip() is None
    except (*UNREADABLE, ValueError):
        return False


def check_file(path: Path, force: bool = False) -> None:
    """Raise ValueError where a file may not be written.

    That is where one exists and `force` is not set, or where something that is no file
    stands, such as a folder, a device or a pipe.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"{path} is no file; expected the name of one to write")
    if not force:
        raise ValueError(f"{path} exists; choose another --out, or give --force")


def check_folder(
    path: Path, force: bool, what: str, mark: str, patterns: Iterable[str]
) -> None:
    """Raise ValueError where a folder may not be written.

    That is where one exists and `force` is not set, or where it is not an earlier one of
    its kind, or holds other files beside it.

    Args:
        path: path of the folder
        force: whether an earlier one may be replaced
        what: what the folder is, for messages
        mark: the name of a file that each folder of its kind has
        patterns: names of all files that it may have, as `fnmatch` reads them
    """
    if not path.exists():
        return
    if not force:
        raise ValueError(
            f"{path} exists; expected a new folder. Choose another, or give --force to "
            "replace it."
        )
    if not (path / mark).exists():
        raise ValueError(
            f"{path} is no earlier {what} (it has no {mark}), so --force does not "
            "replace it; choose another folder."
        )
    names = [file.name for file in path.iterdir()]
    more = [x for x in names if not any(fnmatchcase(x, one) for one in patterns)]
    if more:
        raise ValueError(
            f"{path} has {', '.join(sorted(more))} beside an earlier {what}, which "
            "--force would take away; choose another folder."
        )


def save(state: object, path: Path) -> None:
    """Save with torch; where that fails, raise the system's own error.

    torch itself reports a full disk as a position in a zip file.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason
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
    """Write several files, none of which takes its place before all are whole.

    Args:
        files: by each file's path, a function that writes to the path it is called with;
            missing folders are made
        force: whether existing files may be replaced

    Raises:
        ValueError: see `check_file`; it is checked again in the end, as another process
            may have written first
        OSError: a file cannot be written
    """
    parts = {path: path.with_name(path.name + ".part") for path in files}
    with contextlib.ExitStack() as undone:
        for path, part in parts.items():
            check_file(path, force)
            undone.enter_context(_parents(path))
            undone.enter_context(_named(path))
            undone.callback(part.unlink, missing_ok=True)
            part.unlink(missing_ok=True)  # a killed run may have left one
            files[path](part)
            _sync(part)
        for path in parts:
            check_file(path, force)
        for path, part in parts.items():
            os.replace(part, path)


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
    """Provide a hidden folder on the disk where `out` will be, and remove it later."""
    hidden = f".{out.name}."
    with (
        _parents(out),
        _named(out),
        tempfile.TemporaryDirectory(prefix=hidden, dir=out.parent) as folder,
    ):
        yield Path(folder)


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Make a folder to fill, and remove it with all it holds if filling it fails.

    Raises:
        ValueError: the folder exists already; whoever made it keeps it
        OSError: the folder cannot be made
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
    """Provide a folder to fill, which then takes the place of `out`.

    An earlier `out` is first moved to NAME.TOKEN.old beside it, where it can be found if
    the process dies right then. It is removed once its place is taken, and otherwise
    moved back.

    Args:
        out: path of the folder
        check: raises an error if what is at `out` may not be replaced; it is called once
            all is filled, as another process may have written first

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
    """Make the folder that holds a path, and remove what was made if the work fails."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        if missing:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # one that is not empty stays
                folder.rmdir()
        raise


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path to errors of writing that name no file, as a full disk's do."""
    try:
        yield
    except OSError as e:
        if e.errno is not None and e.filename is None:
            e.filename = str(path)
        raise

"""Files that are packed beside a model's weights must be what they are named as.

A configuration, and a folder with results, can come from anybody, and what they name may
be any file of this machine. So each file is read once, by the library that will read it
from the zip, and only then packed.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece
from PIL import Image

from espnet_l0prune.core.reading import open_binary

LARGEST = 2**24  # bytes; tokenizers and pictures have up to 5 MB
LARGEST_STATISTICS = 2**20  # bytes; a compressed file may hold a thousand times more


def check_tokenizer(content: bytes) -> None:
    """Raise an error unless this is a model of sentencepiece."""
    sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(content)


def check_statistics(content: bytes) -> None:
    """Raise an error unless ESPnet's `GlobalMVN` reads statistics from this.

    They are an .npz of `count`, `sum` and `sum_square`, or Kaldi's (2, features + 1).
    """
    if len(content) > LARGEST_STATISTICS:
        raise ValueError(f"it has more than {LARGEST_STATISTICS} bytes")
    statistics = np.load(io.BytesIO(content), allow_pickle=False)
    if isinstance(statistics, np.ndarray):
        fits = statistics.ndim == 2 and len(statistics) == 2
    else:
        sums, squares = statistics["sum"], statistics["sum_square"]
        fits = statistics["count"].size == 1 and sums.shape == squares.shape
    if not fits:
        raise ValueError("its arrays have other shapes")


def check_picture(content: bytes) -> None:
    """Raise an error unless this is a PNG."""
    Image.open(io.BytesIO(content), formats=["PNG"]).verify()


def copy_checked(
    source: str | Path, target: Path, what: str, check: Callable[[bytes], object]
) -> None:
    """Copy a file that holds what it is named as.

    Args:
        source: the file
        target: where the copy goes
        what: the key of the configuration that names it and what is expected, in words
        check: raises any error where the content is something else

    Raises:
        ValueError: a file that is missing, not regular, too large, or something else
    """
    try:
        with open_binary(source) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        check(content)
    except Exception as e:  # each library raises other errors
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(
            f"{source} cannot be packed ({reason}); expected {what}. Nothing was written."
        ) from e
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(content)


def copy_results(experiment: Path, folder: Path) -> list[str]:
    """Copy RESULTS.md and the PNG pictures in images, which an experiment shows.

    Links are refused, since they could show anything.

    Returns:
        the names of those that exist

    Raises:
        ValueError: a link; a text or a picture that is something else
    """
    images, results = experiment / "images", experiment / "RESULTS.md"
    pictures, names = sorted(images.glob("*.png")), []
    for path in (results, images, *pictures):
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link, which could lead to any file; expected none in what "
                "is shown to everybody. Put the file itself there, or remove the link."
            )
    if results.exists():
        what = "the text that `asr.sh` or the recipe writes"
        copy_checked(results, folder / results.name, what, bytes.decode)
        names.append(results.name)
    for path in pictures:
        what = "a picture (PNG), as ESPnet's training draws them"
        copy_checked(path, folder / "images" / path.name, what, check_picture)
    return [*names, "images"] if pictures else names

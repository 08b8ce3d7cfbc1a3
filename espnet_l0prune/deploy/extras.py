"""Files that are packed beside a model's weights: only what they are named as.

A configuration, and a folder with results, can come from anybody: what they name may be
any file of this machine. So each file is read once, by the library that will read it
from the zip, and what was read is packed.
"""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentencepiece
from PIL import Image

from espnet_l0prune.core.reading import open_binary

LARGEST = 2**24  # bytes; tokenizers and pictures have up to 5 MB
LARGEST_STATISTICS = 2**20  # which a compressed file can multiply by a thousand


def check_tokenizer(content: bytes) -> None:
    """Raise where this is no model of sentencepiece's."""
    sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(content)


def check_statistics(content: bytes) -> None:
    """Raise where these are no statistics that ESPnet's `GlobalMVN` reads: an .npz of
    `count`, `sum` and `sum_square`, or an array (2, features + 1) of Kaldi's."""
    if len(content) > LARGEST_STATISTICS:
        raise ValueError(f"it has more than {LARGEST_STATISTICS} bytes")
    found = np.load(io.BytesIO(content), allow_pickle=False)
    if isinstance(found, np.ndarray):
        fits = found.ndim == 2 and len(found) == 2
    else:
        sums, squares = found["sum"], found["sum_square"]
        fits = found["count"].size == 1 and sums.shape == squares.shape
    if not fits:
        raise ValueError("its arrays have other shapes")


def check_picture(content: bytes) -> None:
    """Raise where this is no PNG."""
    Image.open(io.BytesIO(content), formats=["PNG"]).verify()


def copy_checked(
    source: str | Path, target: Path, what: str, check: Callable[[bytes], object]
) -> None:
    """Copy a file that holds what it is named as.

    Args:
        what: the key of the configuration that names it, and what is expected
        check: raises, whatever it likes, where the content is something else

    Raises:
        ValueError: a file that is missing, no regular one, too large, or something else
    """
    try:
        with open_binary(source) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        check(content)
    except Exception as e:  # each library has errors of its own
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise ValueError(
            f"{source} cannot be packed ({reason}); expected {what}. Nothing was written."
        ) from e
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(content)


def copy_results(experiment: Path, folder: Path) -> list[str]:
    """Copy what an experiment shows of itself, RESULTS.md and the PNG pictures in images,
    but no links: they could show anything.

    Returns:
        the names that are there

    Raises:
        ValueError: a link, a text or a picture that is none
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

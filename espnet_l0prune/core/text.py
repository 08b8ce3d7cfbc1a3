"""A stranger's text where it could do harm: as a file's name, and in Markdown.

Names of experiments, results and test sets are whatever somebody wrote, or a folder was
called.
"""

import re
import unicodedata

# of Markdown; an underscore within a word is none
MARKUP = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![^\W_])_|_(?![^\W_])")
LONGEST = 120  # bytes of a file's name: systems take 255, and endings come after it


def plain(text: str) -> str:
    """Text that can be encoded and seen: all but characters and line ends is replaced."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def one_line(text: str) -> str:
    """Text without line ends, which end a title, or a head that is in YAML."""
    return " ".join(plain(text).split())


def file_name(text: str) -> str:
    """Text as a name that leads nowhere: of letters, digits and `_`, `-`, `.` within."""
    name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text))
    return name.encode()[:LONGEST].decode(errors="ignore").strip(".-") or "_"


def in_markdown(text: str) -> str:
    """Text as a line of Markdown shows it, also in a title or a table's cell."""
    return MARKUP.sub(r"\\\g<0>", one_line(text))

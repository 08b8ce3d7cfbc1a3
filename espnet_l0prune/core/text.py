"""Text from strangers is made safe where it could do harm: in file names and in Markdown.

Names of experiments, results and test sets can be anything that somebody typed.
"""

import re
import unicodedata

# Markdown's markup; an underscore within a word is none
MARKUP = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![^\W_])_|_(?![^\W_])")
LONGEST = 120  # bytes of a file's name: systems take 255, and a suffix follows


def plain(text: str) -> str:
    """Replace all that cannot be encoded or seen; line ends stay as they are."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def one_line(text: str) -> str:
    """Join text into one line, since line ends would end a title or break YAML."""
    return " ".join(plain(text).split())


def file_name(text: str) -> str:
    """Turn text into a file's name of letters, digits, `_`, `-` and `.`, in no folder."""
    name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text))
    return name.encode()[:LONGEST].decode(errors="ignore").strip(".-") or "_"


def in_markdown(text: str) -> str:
    """Escape text so that Markdown shows it as it is, also in titles and tables."""
    return MARKUP.sub(r"\\\g<0>", one_line(text))

"""Real speech for tests, from archives that are not in this repository."""

import re
import tarfile
from pathlib import Path

import numpy as np
import soundfile


def read_mini_an4(archive: Path) -> dict[str, tuple[np.ndarray, str]]:
    """Return the recordings that have a transcript, at 16 kHz, with it, by name."""
    with tarfile.open(archive) as tar:
        files = {Path(m.name).name: m for m in tar if m.isfile()}
        lines = [
            line
            for name in ("an4_train.transcription", "an4_test.transcription")
            for line in tar.extractfile(files[name]).read().decode().splitlines()
        ]
        found = {}
        for line in lines:  # such as <s> YES </s> (an251-fash-b)
            text, name = re.fullmatch(
                r"(?:<s> )?([A-Z ]+?)(?: </s>)? \((.+)\)", line
            ).groups()
            wave, rate = soundfile.read(tar.extractfile(files[f"{name}.sph"]))
            assert rate == 16_000
            found[name] = wave, text
    return found

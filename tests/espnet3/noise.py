"""A data set in ESPnet3's form: what `make_noise` of `runs.py` wrote."""

from pathlib import Path

import numpy as np
from espnet3.components.data.base_dataset import BaseDataset
from espnet3.contract import Field


class Dataset(BaseDataset):
    """It has random audio, of which one utterance may be NaN, and texts."""

    fields = (Field("speech", "audio"), Field("text", "text"))

    def __init__(self, folder: str, broken: int | None = None):
        self.folder, self.broken = Path(folder), broken
        lines = (self.folder / "text").read_text("utf-8").splitlines()
        self.texts = [line.split()[1] for line in lines]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index) -> dict:
        index = int(index)
        speech = np.load(self.folder / f"{index}.npy")
        if index == self.broken:
            speech = np.full_like(speech, np.nan)
        return {"speech": speech, "text": self.texts[index]}

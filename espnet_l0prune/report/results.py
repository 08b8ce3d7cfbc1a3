"""What decoding and timing found, as the recipe wrote it."""

import json
from dataclasses import dataclass
from pathlib import Path

from espnet_l0prune.core.text import plain

FILE = "RESULTS.json"


@dataclass(frozen=True)
class Result:
    """A model: error rates as shares by test set (0.1 is 10 %), costs of its encoder.

    Attributes:
        macs: for `seconds` of audio
        rtf: seconds of the encoder for a second of audio, on one thread
    """

    name: str
    wer: dict[str, float]
    cer: dict[str, float]
    encoder_parameters: int
    parameters: int
    macs: int
    rtf: float
    seconds: float

    @property
    def mean_wer(self) -> float:
        """Over the test sets."""
        return sum(self.wer.values()) / len(self.wer)


def results_file(experiment: Path) -> Path | None:
    """The results in an experiment's folder, or in the one above it."""
    folder = experiment.resolve()
    return next((f / FILE for f in (folder, folder.parent) if (f / FILE).exists()), None)


def read_results(file: Path) -> list[Result]:
    """Dense and pruned, as the recipe wrote them.

    Raises:
        ValueError: a file that is not what the recipe writes
    """
    try:
        found = json.loads(file.read_text("utf-8"))
        names = [name for name in Result.__dataclass_fields__ if name != "name"]
        seconds = {"seconds": found["seconds"]}
        return [
            Result(plain(name), **{k: (model | seconds)[k] for k in names})
            for name, model in found["models"].items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(
            f"{file} cannot be read ({type(e).__name__}: {e}); expected what stage 10 of "
            "the recipe writes"
        ) from e

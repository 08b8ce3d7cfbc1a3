"""What decoding and timing found, as the recipe wrote it."""

import json
from dataclasses import dataclass
from pathlib import Path

FILE = "RESULTS.json"


@dataclass(frozen=True)
class Result:
    """A model: error rates as shares by test set, costs of its encoder.

    Attributes:
        macs: for `seconds` of audio
        rtf: of the encoder, on one thread
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


def read_results(experiment: Path) -> list[Result]:
    """Dense and pruned, as RESULTS.json in a folder or in the one above says; nothing
    where there is none.

    Raises:
        ValueError: a file that is not what the recipe writes
    """
    for folder in (experiment, experiment.resolve().parent):
        file = folder / FILE
        if not file.exists():
            continue
        try:
            found = json.loads(file.read_text("utf-8"))
            names = [name for name in Result.__dataclass_fields__ if name != "name"]
            return [
                Result(
                    name, **{k: (model | {"seconds": found["seconds"]})[k] for k in names}
                )
                for name, model in found["models"].items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(
                f"{file} cannot be read ({type(e).__name__}: {e}); expected what stage "
                "10 of the recipe writes"
            ) from e
    return []

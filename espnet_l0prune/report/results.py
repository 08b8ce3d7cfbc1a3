"""Results are what decoding and timing measured, as the recipe wrote them."""

from dataclasses import dataclass, fields
from pathlib import Path

from espnet_l0prune.core.reading import read_json
from espnet_l0prune.core.text import plain
from espnet_l0prune.report.values import amount, amounts

FILE = "RESULTS.json"


@dataclass(frozen=True)
class Result:
    """A `Result` is what was measured of a model; what the file does not have is None.

    Attributes:
        name: the model's name
        wer, cer: error rates by test set, as shares (0.1 is 10 %)
        encoder_parameters, parameters: number of parameters of encoder and model
        macs: the encoder's multiply-accumulates for `seconds` of audio
        rtf: the encoder's time for a second of audio in seconds, on one thread
        seconds: length of the audio for which MACs were counted
    """

    name: str
    wer: dict[str, float]
    cer: dict[str, float]
    encoder_parameters: float | None
    parameters: float | None
    macs: float | None
    rtf: float | None
    seconds: float | None

    @property
    def mean_wer(self) -> float | None:
        """Return the mean word error rate of the test sets."""
        return sum(self.wer.values()) / len(self.wer) if self.wer else None

    @property
    def is_dense(self) -> bool:
        """Return whether this is the dense model, with which others are compared.

        Its recipe's folder may be a part of its name.
        """
        return self.name.rpartition("/")[2] == "dense"

    @property
    def missing(self) -> list[str]:
        """Return the names of what the file does not have."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return [name for name, value in values.items() if value in (None, {})]


def results_file(experiment: Path) -> Path | None:
    """Return the results in an experiment's folder, or in the one above it."""
    folder = experiment.resolve()
    return next((f / FILE for f in (folder, folder.parent) if (f / FILE).exists()), None)


def read_results(file: Path) -> list[Result]:
    """Return the dense and the pruned models of a recipe, as far as they are measured.

    Raises:
        ValueError: a file that is not what the recipe writes
    """
    try:
        results = read_json(file)
        models = {**results["models"]}
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(
            f"{file} cannot be read ({type(e).__name__}: {e}); expected what stage 10 of "
            "the recipe writes"
        ) from e
    seconds = amount(results.get("seconds"))
    return [_read_model(name, model, seconds) for name, model in models.items()]


def _read_model(name: str, model: object, seconds: float | None) -> Result:
    values = model if isinstance(model, dict) else {}
    costs = ("encoder_parameters", "parameters", "macs", "rtf")
    return Result(
        name=plain(name),
        wer=amounts(values.get("wer")),
        cer=amounts(values.get("cer")),
        seconds=seconds,
        **{cost: amount(values.get(cost)) for cost in costs},
    )

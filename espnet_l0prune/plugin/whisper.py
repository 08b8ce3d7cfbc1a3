"""Whisper's networks are built without the published model where only they are at hand.

ESPnet builds them from that model's file, which whisper downloads, and then replaces the
weights by those of a training.
"""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from espnet_l0prune.networks.espnet_modules import (
        OpenAIWhisperEncoder as MixedWith,
    )
else:
    MixedWith = object


class WhisperNetwork(MixedWith):
    """A `WhisperNetwork` adds an option to one of our classes that it is mixed with.

    Args:
        dimensions: the sizes of the published model, by the names that whisper has for
            them. With these, the network is built without that model's file, so that a
            cut model can be loaded where the published one is not. `espnet-l0prune cut`
            and `export` write them; null loads the file, as ESPnet does

    Raises:
        ValueError: sizes that whisper does not know, or sizes that are missing
    """

    conf_name: str  # ESPnet's option that configures the network

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        own = inspect.signature(WhisperNetwork.__init__).parameters["dimensions"]
        shown = inspect.signature(cls)
        known = [*shown.parameters.values()]
        if own not in known:
            cls.__signature__ = shown.replace(parameters=[*known, own])

    def __init__(
        self,
        *sizes: int,
        dimensions: Mapping[str, int] | None = None,
        **conf: Any,
    ):
        with _loading(dimensions, self.conf_name) as loaded:
            super().__init__(*sizes, **conf)
        self.dimensions = loaded

    def portable_conf(self) -> dict[str, object]:
        """Return options with which the network is built where only its weights are."""
        return {"dimensions": dict(self.dimensions), "download_dir": None}


@contextmanager
def _loading(
    dimensions: Mapping[str, int] | None, where: str
) -> Iterator[dict[str, int]]:
    """Yield a mapping that gets the sizes of the model that whisper loads in the block.

    Args:
        dimensions: the sizes of a model to build instead of loading one
        where: the part of the configuration that has them, for the message
    """
    import whisper

    found: dict[str, int] = {}
    load = whisper.load_model

    def load_model(*args: Any, **kwargs: Any) -> nn.Module:
        if dimensions is None:
            model = load(*args, **kwargs)
        else:
            model = whisper.model.Whisper(_sizes(dimensions, where))
            nn.init.normal_(model.decoder.positional_embedding, std=0.02)
        found.update(dataclasses.asdict(model.dims))
        return model

    whisper.load_model = load_model
    try:
        yield found
    finally:
        whisper.load_model = load


def _sizes(dimensions: Mapping[str, int], where: str) -> Any:
    from whisper.model import ModelDimensions

    try:
        return ModelDimensions(**dimensions)
    except TypeError as e:
        names = ", ".join(field.name for field in dataclasses.fields(ModelDimensions))
        raise ValueError(
            f"{where}: dimensions is {dimensions!r}; expected a number for each of "
            f"{names}"
        ) from e

"""Whisper's networks are built without the published model where only they are at hand.

ESPnet builds them from that model's file, which whisper downloads, and then replaces the
weights by those of a training.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from espnet_l0prune.plugin.signature import show_more_options

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
        show_more_options(cls, WhisperNetwork)

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
        where: the part of the configuration that has them, which is `encoder_conf` or
            `decoder_conf`
    """
    import whisper

    found: dict[str, int] = {}
    load = whisper.load_model

    def load_model(name: str, **options: Any) -> nn.Module:
        if dimensions is not None:
            found.update(dimensions)
            return _build(dimensions, where)
        try:
            model = load(name, **options)
        except OSError as e:
            raise ValueError(
                f"{where}: whisper_model is {name}, whose file is not in download_dir, "
                f"{options.get('download_root')}, and cannot be downloaded ({e}); "
                "expected it there. A model that was cut needs none."
            ) from e
        found.update(dataclasses.asdict(model.dims))
        return model

    whisper.load_model = load_model
    try:
        yield found
    finally:
        whisper.load_model = load


def _build(dimensions: Mapping[str, int], where: str) -> nn.Module:
    """Return a Whisper of random weights, without the blocks that ESPnet leaves aside."""
    from whisper.model import ModelDimensions, Whisper

    names = [field.name for field in dataclasses.fields(ModelDimensions)]
    numbers = all(type(value) is int and value > 0 for value in dimensions.values())
    if dimensions.keys() != {*names} or not numbers:
        raise ValueError(
            f"{where}: dimensions is {dict(dimensions)}; expected a number above 0 for "
            f"each of {', '.join(names)}"
        )
    other = {"n_text_layer": 0, "n_vocab": 1}  # of what ESPnet leaves aside
    if where == "decoder_conf":
        other = {"n_audio_layer": 0}
    model = Whisper(ModelDimensions(**{**dimensions, **other}))
    nn.init.normal_(model.decoder.positional_embedding, std=0.02)
    return model

"""The parts of ESPnet that we build on, imported in one place.

Upstream moves `espnet.nets` to `espnet2.legacy.nets`: only this file has to follow.
"""

import importlib

_PLACES = ("espnet.nets.pytorch_backend", "espnet2.legacy.nets.pytorch_backend")


def _find(module: str, name: str) -> type:
    for place in _PLACES:
        try:
            return getattr(importlib.import_module(f"{place}.{module}"), name)
        except ModuleNotFoundError:
            continue
    raise ImportError(f"ESPnet has no {module}.{name} in {' or '.join(_PLACES)}")


ConvolutionModule = _find("conformer.convolution", "ConvolutionModule")
MultiHeadedAttention = _find("transformer.attention", "MultiHeadedAttention")
PositionwiseFeedForward = _find(
    "transformer.positionwise_feed_forward", "PositionwiseFeedForward"
)

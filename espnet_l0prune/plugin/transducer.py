"""A loss for transducers where the package is missing that ESPnet takes it from."""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

from espnet_l0prune.networks.espnet_modules import RNNTLossNumba

PACKAGE = "warprnnt_pytorch"


@contextlib.contextmanager
def loss_at_hand() -> Iterator[None]:
    """A while in which the models of ESPnet find a transducer loss, of which they keep
    one: that of warprnnt_pytorch, or ESPnet's own where this is not installed."""
    if PACKAGE in sys.modules or importlib.util.find_spec(PACKAGE):
        yield
        return
    stand_in = types.ModuleType(PACKAGE)
    vars(stand_in)["RNNTLoss"] = RNNTLossNumba
    sys.modules[PACKAGE] = stand_in
    try:
        yield
    finally:
        del sys.modules[PACKAGE]

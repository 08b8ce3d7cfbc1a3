"""ESPnet takes the transducer loss from a package, which may be missing."""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

from espnet_l0prune.networks.espnet_modules import RNNTLossNumba

PACKAGE = "warprnnt_pytorch"


@contextlib.contextmanager
def loss_at_hand() -> Iterator[None]:
    """Provide a transducer loss for models that ESPnet builds within a `with` block.

    It is that of warprnnt_pytorch, or ESPnet's own where this is not installed; a model
    keeps the one that it finds.
    """
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

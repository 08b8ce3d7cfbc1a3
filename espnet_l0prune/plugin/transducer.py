"""ESPnet takes the transducer loss from a package, which may be missing.

Here is also what our encoder of its task asr_transducer has beside its options.
"""

import contextlib
import copy
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from espnet_l0prune.networks.espnet_modules import RNNTLossNumba
from espnet_l0prune.networks.transducer import narrow_caches_

if TYPE_CHECKING:
    from espnet_l0prune.networks.espnet_modules import TransducerEncoder as MixedWith
else:
    MixedWith = object

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


def provide_loss_(model: nn.Module) -> None:
    """Give a model of the task asr_transducer its loss.

    ESPnet looks for the package in the first forward, and ends the process without it.
    """
    if getattr(model, "criterion_transducer", model) is None:
        with loss_at_hand():
            loss = importlib.import_module(PACKAGE).RNNTLoss
        model.criterion_transducer = loss(
            reduction="mean", fastemit_lambda=model.fastemit_lambda
        )


class TransducerNetwork(MixedWith):
    """A `TransducerNetwork` is mixed with the encoder of the task asr_transducer."""

    def __init__(self, *sizes: int, **conf: Any):
        # ESPnet writes into these, its own default of `input_conf` among them
        super().__init__(*sizes, **{"input_conf": {}, **copy.deepcopy(conf)})

    def reset_cache(self, left_context: int, device: torch.device) -> None:
        """Begin a new utterance, of which chunks will be read; see ESPnet's encoder."""
        super().reset_cache(left_context, device)
        narrow_caches_(self)

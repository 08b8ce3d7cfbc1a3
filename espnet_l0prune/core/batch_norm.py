"""Batch normalization's statistics, taken anew where the network has changed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class RestartedMean:
    """Forward pre-hook: running statistics that begin anew.

    Each is the plain mean over the batches since the restart, until `momentum` weighs a
    batch more than that: the network before the restart has no share in it. It counts
    in the module's own buffer, so it goes on where a checkpoint stopped.
    """

    def __init__(self, norm: _BatchNorm):
        self.momentum, self.batches = norm.momentum, int(norm.num_batches_tracked)

    def __call__(self, norm: _BatchNorm, _) -> None:
        if norm.training and norm.track_running_stats:
            self.batches += 1
            norm.momentum = max(self.momentum, 1 / self.batches)


def restart_(norm: _BatchNorm, *, forget: bool) -> None:
    """Begin running statistics anew, see `RestartedMean`; or go on with what was begun,
    where `forget` is false."""
    if forget:  # what is there stands until the first batch, which replaces it
        norm.num_batches_tracked.zero_()
    hooks = norm._forward_pre_hooks
    for key, hook in list(hooks.items()):
        if isinstance(hook, RestartedMean):
            norm.momentum = hook.momentum
            del hooks[key]
    norm.register_forward_pre_hook(RestartedMean(norm))


def batch_norms(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    """Those within some modules that keep running statistics by momentum, each once."""
    inside = dict.fromkeys(m for module in modules for m in module.modules())
    return [
        m
        for m in inside
        if isinstance(m, _BatchNorm) and m.track_running_stats and m.momentum is not None
    ]


@contextmanager
def unobserved(*modules: nn.Module) -> Iterator[None]:
    """For a while, no running statistics learn of what passes."""
    norms = batch_norms(modules)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True

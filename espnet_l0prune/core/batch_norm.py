"""The running statistics of batch norms start anew where the network has changed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class RestartedMean:
    """A `RestartedMean` is a forward pre-hook that averages a batch norm's statistics.

    Each statistic is the plain mean over the batches since the restart, until `momentum`
    gives a batch more weight than the plain mean does. Batches before the restart have no
    weight. The count is the batch norm's own buffer, so a resumed run continues it.
    """

    def __init__(self, norm: _BatchNorm):
        self.momentum, self.batches = norm.momentum, int(norm.num_batches_tracked)

    def __call__(self, norm: _BatchNorm, _) -> None:
        if norm.training and norm.track_running_stats:
            self.batches += 1
            norm.momentum = max(self.momentum, 1 / self.batches)


def restart_(norm: _BatchNorm, *, forget: bool) -> None:
    """Restart a batch norm's statistics, or continue a restart, as `RestartedMean` does.

    Args:
        norm: the batch norm
        forget: whether to restart; otherwise the earlier restart is continued
    """
    if forget:  # the old statistics stand until the first batch replaces them
        norm.num_batches_tracked.zero_()
    hooks = norm._forward_pre_hooks
    for key, hook in list(hooks.items()):
        if isinstance(hook, RestartedMean):
            norm.momentum = hook.momentum
            del hooks[key]
    norm.register_forward_pre_hook(RestartedMean(norm))


def batch_norms(modules: Iterable[nn.Module]) -> list[_BatchNorm]:
    """Return the batch norms in some modules that have running statistics, each once."""
    inside = dict.fromkeys(m for module in modules for m in module.modules())
    return [
        m
        for m in inside
        if isinstance(m, _BatchNorm) and m.track_running_stats and m.momentum is not None
    ]


@contextmanager
def unobserved(*modules: nn.Module) -> Iterator[None]:
    """Keep the running statistics of some modules as they are within a `with` block."""
    norms = batch_norms(modules)
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True

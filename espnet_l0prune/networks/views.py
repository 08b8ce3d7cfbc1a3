"""Two views of a batch are one batch that has each utterance twice, with other masks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

Part = TypeVar("Part", Tensor, list)  # of a batch: a tensor, or the utterances' names


def in_two_views(part: Part) -> Part:
    """Return what a batch has of n utterances, followed by the same, for 2 n."""
    return [*part, *part] if isinstance(part, list) else torch.cat([part, part])


@contextmanager
def warped_alike(specaug: nn.Module | None) -> Iterator[None]:
    """Let ESPnet's SpecAug warp both views of a batch alike within a `with` block.

    So frames stay paired, while masks differ. Other augmentations are left as they are.

    Args:
        specaug: the augmentation, if there is one
    """
    warp = getattr(specaug, "time_warp", None)
    if warp is None:
        yield
        return

    def first_view(_, args):
        return tuple(None if x is None else x[: len(x) // 2] for x in args)

    def both_views(_, args, output):
        return tuple(None if x is None else in_two_views(x) for x in output)

    hooks = [
        warp.register_forward_pre_hook(first_view),
        warp.register_forward_hook(both_views),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

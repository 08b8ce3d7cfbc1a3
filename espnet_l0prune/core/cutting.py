"""Cutting a network down to what a plan leaves of it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from espnet_l0prune.core.hooks import remove_gates_
from espnet_l0prune.core.plan import features_left
from espnet_l0prune.core.sites import Site


@torch.no_grad()
def cut_(network: nn.Module, sites: Sequence[Site], plan: Mapping) -> None:
    """Keep only the planned units of a network, and remove all its gates, in place.

    Args:
        network: holds the sites
        plan: as `Plan`; sites and kinds that it does not name keep all their units
    """
    kept, left = features_left(sites, plan)
    remove_gates_(network)
    for (module, name), dims in left.items():
        _keep_features_(module, name, dims)
    for module in dict.fromkeys(module for module, _ in left):
        _resize_(module)
    for site in sites:
        site.finish_(kept)


def _keep_features_(module: nn.Module, name: str, dims: Mapping[int, Tensor]) -> None:
    old = tensor = getattr(module, name)
    for dim, mask in dims.items():
        if tensor.dim() > dim and not bool(mask.all()):
            index = mask.nonzero().flatten().to(tensor.device)
            tensor = tensor.index_select(dim, index)
    if tensor is not old:
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor.clone(), requires_grad=old.requires_grad)
        setattr(module, name, tensor)


def _resize_(layer: nn.Module) -> None:
    """Let a layer's attributes say what its tensors are."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        depthwise = layer.groups > 1
        layer.out_channels = layer.weight.size(0)
        layer.in_channels = layer.weight.size(0 if depthwise else 1)
        layer.groups = layer.out_channels if depthwise else 1
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.BatchNorm1d):
        layer.num_features = layer.weight.size(0)

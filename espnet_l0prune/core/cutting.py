"""A cut removes from a network what a plan does not keep."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from espnet_l0prune.core.hooks import remove_gates_, spread
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.core.sites import Site


@torch.no_grad()
def cut_(network: nn.Module, sites: Sequence[Site], plan: Plan) -> None:
    """Keep only the planned units of a network, and remove all its gates, in place.

    Args:
        network: the network that holds the sites
        plan: the units to keep; sites and kinds that it does not name keep all of theirs

    Raises:
        ValueError: a plan of another network
    """
    plan.check(sites)
    kept, left = features_left(sites, plan)
    remove_gates_(network)
    for (module, name), dims in left.items():
        _keep_features_(module, name, dims)
    for module in dict.fromkeys(module for module, _ in left):
        _resize_(module)
    for site in sites:
        site.finish_(kept)


def features_left(
    sites: Sequence[Site], plan: Plan
) -> tuple[dict[str, dict[str, Tensor]], dict[tuple[nn.Module, str], dict[int, Tensor]]]:
    """Return what a plan leaves of each site's units and of each tensor's features.

    Args:
        sites: all sites of the network
        plan: the units to keep; sites and kinds that it does not name keep all of theirs

    Returns:
        which units stay, (units,) bool, by site and kind; and which features stay,
        (features,) bool, by module and tensor, then by dimension
    """
    kept: dict[str, dict[str, Tensor]] = {}
    left: dict[tuple[nn.Module, str], dict[int, Tensor]] = {}
    for site in sites:
        masks = {}
        for kind, size in site.sizes.items():
            mask = torch.zeros(size, dtype=torch.bool)
            mask[plan.units(site, kind)] = True
            masks[kind] = mask
        kept[site.name] = masks
        for claim in site.claims():
            if claim.whole:
                continue
            dims = left.setdefault((claim.module, claim.tensor), {})
            mask = spread(masks[claim.kind], claim.inner, claim.outer)
            dims[claim.dim] = dims.get(claim.dim, True) & mask
    return kept, left


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
    """Set a layer's attributes to the sizes that its tensors have now."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        depthwise = layer.groups > 1
        layer.out_channels = layer.weight.size(0)
        layer.in_channels = layer.weight.size(0 if depthwise else 1)
        layer.groups = layer.out_channels if depthwise else 1
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.GroupNorm):  # one group for each channel
        layer.num_groups = layer.num_channels = layer.weight.size(0)
    elif isinstance(layer, nn.BatchNorm1d):
        layer.num_features = layer.weight.size(0)

"""The stock form is a cut model in a shape that plain ESPnet builds, without the plugin.

It is as small as a stock configuration can say: blocks that were cut are gone, and FFNs
and cgMLPs are as wide as the widest one left. Narrower ones are filled up with zeros, and
so are heads and channels, whose number ESPnet ties to the model's size. Zeros add nothing
to a layer's output, so the outputs are the same, but they save no time.
"""

import argparse
import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espnet_l0prune.core.cutting import features_left
from espnet_l0prune.core.goal import NETWORKS
from espnet_l0prune.core.narrow import features_of
from espnet_l0prune.core.plan import Plan
from espnet_l0prune.deploy.exports.form import ExportForm, Packed, same_as
from espnet_l0prune.deploy.exports.standalone import sizes_of, widths_of
from espnet_l0prune.deploy.verify import ROUNDED, TOLERANCE
from espnet_l0prune.networks.block import Skip
from espnet_l0prune.networks.branch import BranchSite, ConstantSite
from espnet_l0prune.networks.branches.attention import AttentionSite
from espnet_l0prune.networks.branches.cgmlp import ConvolutionalGatingSite
from espnet_l0prune.networks.branches.feed_forward import FeedForwardSite
from espnet_l0prune.networks.branches.transducer import TransducerAttentionSite
from espnet_l0prune.networks.espnet_modules import MultiConvConformerEncoder
from espnet_l0prune.networks.linear_attention import LinearAttention
from espnet_l0prune.networks.sites import blocks_of, find_sites, layers_of
from espnet_l0prune.networks.stream import BlockWidthSite, StreamSite
from espnet_l0prune.plugin.building import build_model, task_name
from espnet_l0prune.plugin.model import L0Distilled
from espnet_l0prune.plugin.models import IN_CODE, NAMES
from espnet_l0prune.plugin.network import L0Network
from espnet_l0prune.plugin.transducer import TransducerNetwork
from espnet_l0prune.plugin.upstream import UpstreamNetwork
from espnet_l0prune.plugin.weight_names import portable
from espnet_l0prune.plugin.whisper import WhisperNetwork


class StockForm(ExportForm):
    """The `StockForm` has the shape that plain ESPnet loads."""

    def pack(
        self, model: nn.Module, args: argparse.Namespace, folder: Path, int8: bool
    ) -> Packed:
        """Pack the model; see `ExportForm.pack`.

        Raises:
            ValueError: see `to_stock`; a stock-shaped model that computes something else
        """
        stock, options, tolerance = to_stock(model, args)
        verify = same_as(model, tolerance)
        verify(stock)
        return Packed(portable(stock), options, verify)


def to_stock(
    model: nn.Module, args: argparse.Namespace
) -> tuple[nn.Module, argparse.Namespace, float]:
    """Build the stock-shaped model of a cut one, and return it with its options.

    The caller must verify that it computes the same, within the returned tolerance.

    Args:
        model: the cut model, without gates
        args: its configuration

    Returns:
        the model in evaluation mode, its options, and the tolerance in float64, relative
        to the output's scale

    Raises:
        ValueError: gates; a structure that no stock configuration can express; a model
            for which ESPnet lacks a package here
    """
    conf = _without_ours(vars(args), model)
    for part in NETWORKS:
        network = getattr(model, part)
        if isinstance(network, L0Network):
            _check(network, part)
            conf[f"{part}_conf"] |= _sizes(network, conf[f"{part}_conf"])
    options = argparse.Namespace(**copy.deepcopy(conf))
    try:
        with torch.random.fork_rng():
            stock = build_model(options)
    except ImportError as e:
        raise ValueError(
            f"plain ESPnet cannot build this model here ({e}). Install what is missing, "
            "or export it as a plugin model."
        ) from e
    state, tolerance = model.state_dict(), TOLERANCE
    for part in NETWORKS:
        network = getattr(model, part)
        if isinstance(network, L0Network):
            ours = {k: v for k, v in state.items() if k.startswith(f"{part}.")}
            state = {k: v for k, v in state.items() if k not in ours}
            filled = _filled(network, getattr(stock, part))
            state |= {f"{part}.{name}": value for name, value in filled.items()}
            if not _dims(network) <= _dims(getattr(stock, part)):
                tolerance = ROUNDED
    stock.load_state_dict(state)
    return stock.eval(), argparse.Namespace(**conf), tolerance


def _dims(network: nn.Module) -> set[int]:
    """Return the sizes of a network's heads; filled-up heads have scaled weights."""
    sites = find_sites(network)
    return {site.module.d_k for site in sites if isinstance(site, AttentionSite)}


def _without_ours(config: Mapping, model: nn.Module) -> dict:
    """Return a configuration in ESPnet's own names."""
    conf = copy.deepcopy(dict(config))
    task = task_name(argparse.Namespace(**conf))
    for part in NETWORKS:
        if isinstance(getattr(model, part), L0Network):
            conf[part] = conf[part].removeprefix("l0_")
            drop = _options(L0Network)
            theirs = conf[f"{part}_conf"].items()
            conf[f"{part}_conf"] = {k: v for k, v in theirs if k not in drop}
    if isinstance(model, L0Distilled):
        conf["model"] = NAMES[task][conf["model"]]
        drop = _options(L0Distilled)
        conf["model_conf"] = {
            k: v for k, v in conf["model_conf"].items() if k not in drop
        }
    return {k: v for k, v in conf.items() if k not in IN_CODE.get(task, {})}


def _options(ours: Any) -> set[str]:
    """Return the options that a class adds to those of ESPnet."""
    parameters = inspect.signature(ours.__init__).parameters.values()
    return {p.name for p in parameters if p.kind == inspect.Parameter.KEYWORD_ONLY}


def _check(network: L0Network, part: str) -> None:
    def refuse(what: str) -> ValueError:
        return ValueError(
            f"the {part} {what}, which no configuration of plain ESPnet can express. "
            "Export it as a plugin model, or prune other units."
        )

    if network.gated_sites():
        raise ValueError(f"the {part} has gates; expected a model that was cut")
    if isinstance(network, (WhisperNetwork, UpstreamNetwork)):
        raise refuse("is a published model that need not have its published sizes")
    if any(features_of(module) is not None for module in network.modules()):
        raise refuse("was cut in width")
    if any(isinstance(module, LinearAttention) for module in network.modules()):
        raise refuse("has linear attention")
    gating = _left(network, ConvolutionalGatingSite)
    if len(set(gating)) > 1:
        raise refuse(f"has cgMLPs of different widths ({gating}) with a norm over each")
    lost = any(isinstance(block, Skip) for block in layers_of(network))
    if lost and getattr(network, "interctc_layer_idx", None):
        raise refuse("has lost blocks and counts them for intermediate CTC")
    *own, _ = _kept(network).values()
    if len(set(map(len, own))) > 1:
        raise refuse("has lost unequal numbers of blocks for each speaker")
    if isinstance(network, TransducerNetwork) and any(
        0 < gating < feed_forward for feed_forward, gating in widths_of(network)
    ):
        raise refuse("has cgMLPs, with a norm over each, that are narrower than the FFNs")


def _kept(network: nn.Module) -> dict[str, list[int]]:
    """Return the places of the blocks that are left, by the blocks' name in a network.

    In an encoder for several speakers, the blocks of each come first, and those that they
    share are the last.
    """
    return {
        name: [i for i, block in enumerate(blocks) if not isinstance(block, Skip)]
        for name, blocks in blocks_of(network)
    }


def _left(network: L0Network, kind: type[BranchSite]) -> list[int]:
    """Return the number of channels of each module of a kind that is left."""
    sites = [site for site in network.sites() if type(site) is kind]
    return [site.sizes[site.kinds[-1]] for site in sites]


def _sizes(network: L0Network, conf: Mapping) -> dict[str, Any]:
    """Return what a stock configuration can say about a cut network.

    Args:
        network: the network
        conf: its options before the cut
    """
    if isinstance(network, TransducerNetwork):
        return sizes_of(network, conf)
    *own, shared = _kept(network).values()
    sizes = {"num_blocks": len(shared)}
    if own:
        sizes["num_blocks_sd"] = len(own[0])
    known = inspect.signature(type(network)).parameters
    if "linear_units" in known:
        sizes["linear_units"] = max(_left(network, FeedForwardSite), default=1)
    if "cgmlp_linear_units" in known and not isinstance(
        network, MultiConvConformerEncoder
    ):
        sizes["cgmlp_linear_units"] = 2 * max(
            _left(network, ConvolutionalGatingSite), default=1
        )
    return sizes


def _filled(network: L0Network, stock: nn.Module) -> dict[str, Tensor]:
    """Return the state of the stock-shaped network: what is left, and zeros beside it."""
    cut = _renumbered(network)
    sites, by_name = find_sites(stock), {site.name: site for site in find_sites(network)}
    names = _names(network)
    plan = {}
    for site in sites:
        ours = by_name[names.get(site.name, site.name)]
        if not isinstance(site, (StreamSite, BlockWidthSite)):
            plan[site.name] = {k: [*range(ours.sizes[k])] for k in site.sizes}
    _, left = features_left(sites, Plan(plan))
    state = {}
    for path, module in stock.named_modules():
        for name, old in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            key = f"{path}.{name}" if path else name
            if name in module._non_persistent_buffers_set:
                continue
            state[key] = _placed(cut.get(key), old, left.get((module, name), {}), module)
    for site in sites:
        ours = by_name[names.get(site.name, site.name)]
        if isinstance(site, BranchSite) and isinstance(ours, ConstantSite):
            bias = next(k for k, m in stock.named_modules() if m is site.consumer)
            if ours.module.value is not None:
                state[f"{bias}.bias"] = ours.module.value.detach().clone()
        elif isinstance(site, AttentionSite) and isinstance(ours, AttentionSite):
            scale = math.sqrt(site.module.d_k / ours.module.d_k)
            for name in _scores(site):
                key = f"{site.name}.{name}"
                if key in state and scale != 1:  # the scores are divided by another root
                    state[key] *= scale
    return state


def _scores(site: AttentionSite) -> list[str]:
    """Return the names of an attention's tensors that are factors of all its scores."""
    names = ["linear_q.weight", "linear_q.bias", "pos_bias_u", "pos_bias_v"]
    if isinstance(site, TransducerAttentionSite) and site.is_simplified:
        names += ["linear_pos.weight", "linear_pos.bias"]
    return names


def _placed(
    small: Tensor | None, old: Tensor, masks: Mapping[int, Tensor], module: nn.Module
) -> Tensor:
    """Return a tensor of the stock shape that holds a smaller one, or none."""
    if small is not None and small.shape == old.shape:
        return small.detach().clone()
    norms = nn.LayerNorm, nn.BatchNorm1d
    whole = old.detach().clone() if isinstance(module, norms) else torch.zeros_like(old)
    if small is not None:
        index = [torch.arange(n) for n in whole.shape]
        for dim, mask in masks.items():
            if dim < whole.dim():
                index[dim] = mask.nonzero().flatten()
        whole[torch.meshgrid(*index, indexing="ij")] = small.detach()
    return whole


def _names(network: nn.Module) -> dict[str, str]:
    """Return the paths of sites in the stock-shaped network, with their earlier ones."""
    sites, names = find_sites(network), {}
    for new, old in _new_paths(network):
        for site in sites:
            if site.name == old or site.name.startswith(f"{old}."):
                names[new + site.name.removeprefix(old)] = site.name
    return names


def _new_paths(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the path of each block in the stock-shaped network, with its earlier one."""
    for name, kept in _kept(network).items():
        for place, index in enumerate(kept):
            yield f"{name}.{place}", f"{name}.{index}"


def _renumbered(network: nn.Module) -> dict[str, Tensor]:
    """Return the state of a cut network, with the blocks that are left renumbered."""
    state = network.state_dict()
    renumbered = {
        new + name.removeprefix(old): value
        for new, old in _new_paths(network)
        for name, value in state.items()
        if name.startswith(f"{old}.")
    }
    blocks = tuple(f"{name}." for name in _kept(network))
    others = {k: v for k, v in state.items() if not k.startswith(blocks)}
    return others | renumbered

"""Sites in the blocks of ESPnet's encoders: where gates attach, and how they are cut.

A gate multiplies the input of the layer that consumes its units, or the output of a
module's last layer if the unit is the whole module. It is a child of that layer, so
every other key of the checkpoint stays ESPnet's own.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from espnet_l0prune.core.gates import HardConcrete, LogAlpha
from espnet_l0prune.core.sites import Site
from espnet_l0prune.plugin.espnet_modules import (
    ConvolutionModule,
    MultiHeadedAttention,
    PositionwiseFeedForward,
)


def gate_input(layer: nn.Module, args: tuple) -> tuple:
    """Forward pre-hook: gate what the layer consumes."""
    return (layer.unit_gate(args[0]), *args[1:])


def gate_output(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """Forward hook: gate what the layer gives."""
    return layer.module_gate(output)


class Constant(nn.Module):
    """A branch whose units are all cut: it gives the bias of its last layer.

    Args:
        size: features of the output
        bias: whether there is one; if not, the branch gives zeros, and has no parameter
    """

    def __init__(self, size: int, bias: bool):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor, *args: Tensor) -> Tensor:
        """Give (batch, time, size) for an input of that shape; ignore the rest."""
        if self.value is None:
            return torch.zeros_like(x)
        return self.value.expand(x.shape)


def count_parameters(*modules: nn.Module | None) -> int:
    """Parameters of the modules, gates aside."""
    return sum(
        p.numel()
        for module in modules
        if module is not None
        for p in module.parameters()
        if not isinstance(p, LogAlpha)
    )


def _take(parameter: Tensor | None, index: Tensor, dim: int) -> nn.Parameter | None:
    if parameter is None:
        return None
    return nn.Parameter(parameter.detach().index_select(dim, index).clone())


def _linear(old: nn.Linear, rows: Tensor | None, columns: Tensor | None) -> nn.Linear:
    """The layer with some of its outputs (rows) or inputs (columns), without gates."""
    weight, bias = old.weight.detach(), old.bias
    if rows is not None:
        weight, bias = weight[rows], _take(bias, rows, 0)
    if columns is not None:
        weight = weight[:, columns]
    new = nn.utils.skip_init(nn.Linear, weight.size(1), weight.size(0), bias is not None)
    new.weight, new.bias = nn.Parameter(weight.clone()), bias
    return new.train(old.training)


def _conv1d(
    old: nn.Conv1d, rows: Tensor | None = None, columns: Tensor | None = None
) -> nn.Conv1d:
    """The convolution with some of its outputs or inputs; depthwise ones by rows."""
    weight, bias = old.weight.detach(), old.bias
    if rows is not None:
        weight, bias = weight[rows], _take(bias, rows, 0)
    if columns is not None:
        weight = weight[:, columns]
    depthwise = old.groups > 1
    new = nn.utils.skip_init(
        nn.Conv1d,
        weight.size(0) if depthwise else weight.size(1),
        weight.size(0),
        old.kernel_size[0],
        padding=old.padding[0],
        groups=weight.size(0) if depthwise else 1,
        bias=bias is not None,
    )
    new.weight, new.bias = nn.Parameter(weight.clone()), bias
    return new.train(old.training)


class BranchSite(Site):
    """A branch of an encoder block: its module, and the norm in front of it.

    Args:
        name: path of the module in the encoder
        block: ESPnet's EncoderLayer
        attribute: the module's name in the block
    """

    module_type: type[nn.Module]
    kinds: tuple[str, ...]  # the kind of unit inside the module comes last
    norms: dict[str, str]  # the module's name in the block: its norm's
    norm_is_concatenated = False  # whether `concat_after` reads the norm too

    def __init__(self, name: str, block: nn.Module, attribute: str):
        self.name, self.block, self.attribute = name, block, attribute

    @property
    def module(self) -> nn.Module:
        return getattr(self.block, self.attribute)

    @property
    def is_constant(self) -> bool:
        return isinstance(self.module, Constant)

    @property
    def consumer(self) -> nn.Module:
        """The last layer of the module: it consumes the units."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """How many features a unit has."""
        return 1

    @property
    def gated_dim(self) -> int:
        """The dimension of the features where the consumer takes them."""
        return -1

    @property
    def removable_norm(self) -> nn.Module | None:
        """The norm that goes when the branch goes: none if others read it too."""
        norm = getattr(self.block, self.norms[self.attribute])
        read_by_others = not self.block.normalize_before or (
            self.block.concat_after and self.norm_is_concatenated
        )
        return None if read_by_others else norm

    @property
    def gates(self) -> dict[str, HardConcrete]:
        if self.is_constant:
            return {}
        found = {
            self.kinds[0]: getattr(self.consumer, "module_gate", None),
            self.kinds[-1]: getattr(self.consumer, "unit_gate", None),
        }
        return {kind: gate for kind, gate in found.items() if gate is not None}

    def attach_(self, kinds: Sequence[str], open_probability: float) -> None:
        if self.is_constant:
            return
        sizes, layer = self.sizes, self.consumer
        if self.kinds[-1] in kinds:
            layer.unit_gate = HardConcrete(
                sizes[self.kinds[-1]], self.gated_dim, self.width, open_probability
            )
            layer.register_forward_pre_hook(gate_input)
        if len(self.kinds) > 1 and self.kinds[0] in kinds:
            layer.module_gate = HardConcrete(
                1, width=None, open_probability=open_probability
            )
            layer.register_forward_hook(gate_output)

    def params(self, opened: Mapping[str, Tensor]) -> Tensor:
        """m (b + n_unit sum(p) + n_shared (1 - prod(1 - p))).

        p: units open; m: the module open; b: the last layer's bias, which an emptied
        branch keeps; n_shared: norms, which it does not.
        """
        p = opened[self.kinds[-1]]
        if self.is_constant:
            return p.new_tensor(count_parameters(self.module))
        bias = self._bias_numel()
        shared = self.norm_numel() + count_parameters(self.removable_norm)
        inside = count_parameters(self.module) - bias - self.norm_numel()
        unit = inside / self.sizes[self.kinds[-1]]
        cost = bias + unit * p.sum() + shared * (1 - torch.prod(1 - p))
        return opened[self.kinds[0]].sum() * cost if len(self.kinds) > 1 else cost

    def _bias_numel(self) -> int:
        bias = self.consumer.bias
        return 0 if bias is None else bias.numel()

    def norm_numel(self) -> int:
        """Parameters in the module that all its units share."""
        return 0

    def fold_(self, values: Mapping[str, Tensor]) -> None:
        if not values:
            return
        layer = self.consumer
        if self.kinds[-1] in values:
            z = values[self.kinds[-1]].repeat_interleave(self.width)
            layer.weight.mul_(z.view(1, -1, *[1] * (layer.weight.dim() - 2)))
        if len(self.kinds) > 1 and self.kinds[0] in values:
            layer.weight.mul_(values[self.kinds[0]])
            if layer.bias is not None:
                layer.bias.mul_(values[self.kinds[0]])

    def cut_(self, keep: Mapping[str, Sequence[int]]) -> None:
        if self.is_constant:
            return
        gone = len(self.kinds) > 1 and not len(keep.get(self.kinds[0], (0,)))
        units = keep.get(self.kinds[-1], range(self.sizes[self.kinds[-1]]))
        if gone or not len(units):
            self._empty_(keep_bias=not gone)
            return
        device = self.consumer.weight.device
        self._shrink_(torch.tensor(list(units), dtype=torch.long, device=device))

    def _empty_(self, keep_bias: bool) -> None:
        bias = self.consumer.bias if keep_bias else None
        constant = Constant(self.consumer.weight.size(0), bias is not None)
        if bias is not None:
            constant.value = nn.Parameter(bias.detach().clone())
        if self.removable_norm is not None:
            setattr(self.block, self.norms[self.attribute], nn.Identity())
        setattr(self.block, self.attribute, constant.train(self.block.training))

    def _shrink_(self, units: Tensor) -> None:
        """Keep the units of these indices, (n,), at least one."""
        raise NotImplementedError


class AttentionSite(BranchSite):
    """Heads of MultiHeadedAttention and its relative-position kinds."""

    module_type = MultiHeadedAttention
    kinds = ("heads",)
    norms = {"self_attn": "norm_mha"}
    norm_is_concatenated = True

    @property
    def sizes(self) -> dict[str, int]:
        return {"heads": 0 if self.is_constant else self.module.h}

    @property
    def consumer(self) -> nn.Linear:
        return self.module.linear_out

    @property
    def width(self) -> int:
        return self.module.d_k

    def norm_numel(self) -> int:
        return count_parameters(self.module.q_norm, self.module.k_norm)

    def _shrink_(self, units: Tensor) -> None:
        attention = self.module
        features = torch.arange(attention.h * attention.d_k, device=units.device)
        features = features.view(attention.h, attention.d_k)[units].flatten()
        for name in ("linear_q", "linear_k", "linear_v", "linear_pos"):
            if hasattr(attention, name):
                layer = _linear(getattr(attention, name), features, None)
                setattr(attention, name, layer)
        for name in ("pos_bias_u", "pos_bias_v"):
            if hasattr(attention, name):
                setattr(attention, name, _take(getattr(attention, name), units, 0))
        attention.linear_out = _linear(attention.linear_out, None, features)
        attention.h = len(units)


class FeedForwardSite(BranchSite):
    """Channels of PositionwiseFeedForward."""

    module_type = PositionwiseFeedForward
    kinds = ("ffn_channels",)
    norms = {"feed_forward": "norm_ff", "feed_forward_macaron": "norm_ff_macaron"}

    @property
    def sizes(self) -> dict[str, int]:
        return {"ffn_channels": 0 if self.is_constant else self.module.w_1.out_features}

    @property
    def consumer(self) -> nn.Linear:
        return self.module.w_2

    def _shrink_(self, units: Tensor) -> None:
        self.module.w_1 = _linear(self.module.w_1, units, None)
        self.module.w_2 = _linear(self.module.w_2, None, units)


class ConvolutionSite(BranchSite):
    """ConvolutionModule: its channels, and the module as a whole."""

    module_type = ConvolutionModule
    kinds = ("conv_modules", "conv_channels")
    norms = {"conv_module": "norm_conv"}

    @property
    def sizes(self) -> dict[str, int]:
        if self.is_constant:
            here = int(self.module.value is not None)
            return {"conv_modules": here, "conv_channels": 0}
        return {
            "conv_modules": 1,
            "conv_channels": self.module.depthwise_conv.out_channels,
        }

    @property
    def consumer(self) -> nn.Conv1d:
        return self.module.pointwise_conv2

    @property
    def gated_dim(self) -> int:
        return 1

    def _shrink_(self, units: Tensor) -> None:
        conv = self.module
        half = conv.depthwise_conv.out_channels
        pair = torch.cat([units, units + half])  # the two inputs of the GLU
        conv.pointwise_conv1 = _conv1d(conv.pointwise_conv1, pair)
        conv.depthwise_conv = _conv1d(conv.depthwise_conv, units)
        conv.norm = _batch_norm(conv.norm, units)
        conv.pointwise_conv2 = _conv1d(conv.pointwise_conv2, None, units)


def _batch_norm(old: nn.BatchNorm1d, units: Tensor) -> nn.BatchNorm1d:
    new = nn.BatchNorm1d(len(units), eps=old.eps, momentum=old.momentum)
    new.weight, new.bias = _take(old.weight, units, 0), _take(old.bias, units, 0)
    new.running_mean = old.running_mean[units].clone()
    new.running_var = old.running_var[units].clone()
    new.num_batches_tracked = old.num_batches_tracked.clone()
    return new.train(old.training)


BRANCHES: tuple[type[BranchSite], ...] = (AttentionSite, ConvolutionSite, FeedForwardSite)
UNITS = tuple(kind for branch in BRANCHES for kind in branch.kinds)


ORDER = ("feed_forward_macaron", "self_attn", "conv_module", "feed_forward")


def _branches(
    encoder: nn.Module,
) -> Iterator[tuple[type[BranchSite], str, nn.Module, str]]:
    """Every module that could be a site: its class of site, path, block and name."""
    for i, block in enumerate(encoder.encoders):
        for attribute in ORDER:
            branch = next(b for b in BRANCHES if attribute in b.norms)
            if getattr(block, attribute, None) is not None:
                yield branch, f"encoders.{i}.{attribute}", block, attribute


def find_sites(encoder: nn.Module) -> list[BranchSite]:
    """All sites in the blocks of an ESPnet encoder, in the order of computation."""
    return [
        branch(name, block, attribute)
        for branch, name, block, attribute in _branches(encoder)
        if isinstance(getattr(block, attribute), (branch.module_type, Constant))
    ]


def refuse_unprunable(encoder: nn.Module, kinds: Sequence[str]) -> None:
    """Raise ValueError if a module of a kind that cannot be cut should get gates."""
    for branch, name, block, attribute in _branches(encoder):
        module, wanted = getattr(block, attribute), set(branch.kinds) & set(kinds)
        if wanted and not isinstance(module, (branch.module_type, Constant)):
            rest = [kind for kind in UNITS if kind not in branch.kinds]
            raise ValueError(
                f"encoder_conf: units has {', '.join(sorted(wanted))}, but {name} is a "
                f"{type(module).__name__}; only {branch.module_type.__name__} can be cut "
                f"there. Choose units among {', '.join(rest)}."
            )

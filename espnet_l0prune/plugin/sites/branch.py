"""What the branches of all blocks share."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from espnet_l0prune.core.replacements import Constant
from espnet_l0prune.core.sites import Claim, Site, whole_output
from espnet_l0prune.plugin.espnet_modules import (
    BranchformerEncoderLayer,
    ConformerLayer,
    DecoderLayer,
    EBranchformerEncoderLayer,
    TransformerLayer,
)

# For each kind of block: its branches in the order of computation, and the norm that
# each of them reads.
LAYOUTS: dict[type[nn.Module], dict[str, str]] = {
    ConformerLayer: {
        "feed_forward_macaron": "norm_ff_macaron",
        "self_attn": "norm_mha",
        "conv_module": "norm_conv",
        "feed_forward": "norm_ff",
    },
    TransformerLayer: {"self_attn": "norm1", "feed_forward": "norm2"},
    BranchformerEncoderLayer: {"attn": "norm_mha", "cgmlp": "norm_mlp"},
    EBranchformerEncoderLayer: {
        "feed_forward_macaron": "norm_ff_macaron",
        "attn": "norm_mha",
        "cgmlp": "norm_mlp",
        "feed_forward": "norm_ff",
    },
    DecoderLayer: {"self_attn": "norm1", "src_attn": "norm2", "feed_forward": "norm3"},
}


def layout_of(block: nn.Module) -> dict[str, str]:
    """The branches that a block has, each with its norm; none if the block is unknown."""
    layout = LAYOUTS.get(type(block), {})
    return {b: n for b, n in layout.items() if getattr(block, b, None) is not None}


class BranchSite(Site):
    """A branch of a block: a module, and the norm in front of it.

    The first kind is the module as a whole, the others are its units. Where all units
    are gone the bias of the last layer stays; where the module is, nothing does.

    Args:
        name: path of the module in the network
        block: ESPnet's layer
        attribute: the module's name in the block

    Attributes:
        attributes: names that such a module has in ESPnet's blocks
        module_types: what it must be, to be cut
        label: the name of this kind of module
    """

    attributes: tuple[str, ...]
    label: str
    module_types: tuple[type[nn.Module], ...]

    def __init__(self, name: str, block: nn.Module, attribute: str):
        self.name, self.block, self.attribute = name, block, attribute

    @property
    def module(self) -> nn.Module:
        return getattr(self.block, self.attribute)

    def part(self, per: str) -> tuple[str, nn.Module]:
        if per == "block":
            return self.name.removesuffix(f".{self.attribute}"), self.block
        return self.label, self.module

    @property
    def norm_name(self) -> str:
        """The norm's name in the block."""
        return layout_of(self.block)[self.attribute]

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        """The layers that read the norm."""
        raise NotImplementedError

    @property
    def consumer(self) -> nn.Module:
        """The last layer of the module: it consumes the units."""
        raise NotImplementedError

    @property
    def norm_is_shared(self) -> bool:
        """Whether the residual stream or the merged branches read the norm too."""
        return not getattr(self.block, "normalize_before", True)

    @property
    def removable_norm(self) -> nn.Module | None:
        """The norm that goes when the branch goes: none if others read it too."""
        return None if self.norm_is_shared else getattr(self.block, self.norm_name)

    def unit_claims(self) -> Iterator[Claim]:
        """The claims of the units, the whole module aside."""
        raise NotImplementedError

    def claims(self) -> Iterator[Claim]:
        yield from self.unit_claims()
        yield from whole_output(self.consumer, self.kinds[0])

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        yield self.module, self.kinds[:1]
        if self.removable_norm is not None:
            yield self.removable_norm, self.kinds

    def finish_(self, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
        masks = kept[self.name]
        there = bool(masks[self.kinds[0]].any())
        if there and all(bool(mask.any()) for mask in masks.values()):
            self.resize_(masks)
            return
        bias = self.consumer.bias if there else None
        sizes = dict.fromkeys(self.kinds, 0) | {self.kinds[0]: int(bias is not None)}
        constant = Constant(bias, self.consumer.weight.size(0), sizes)
        if self.removable_norm is not None:
            setattr(self.block, self.norm_name, nn.Identity())
        setattr(self.block, self.attribute, constant.train(self.block.training))

    def resize_(self, masks: Mapping[str, Tensor]) -> None:
        """Let the module's attributes say what its layers are."""


class ConstantSite(Site):
    """What is left of a branch that was emptied; arguments as of `BranchSite`."""

    kinds = ()

    def __init__(self, name: str, block: nn.Module, attribute: str):
        self.name, self.block, self.attribute = name, block, attribute

    @property
    def module(self) -> nn.Module:
        return getattr(self.block, self.attribute)

    @property
    def sizes(self) -> dict[str, int]:
        return self.module.sizes

    def claims(self) -> Iterator[Claim]:
        return iter(())

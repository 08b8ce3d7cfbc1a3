"""What the branches of all blocks share."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from espnet_l0prune.core.claims import Claim, whole_output_claims
from espnet_l0prune.core.replacements import Constant
from espnet_l0prune.core.sites import Site
from espnet_l0prune.networks.block import Block


class BranchSite(Site):
    """A branch of a block: a module, and the norm in front of it.

    The first kind is the module as a whole, the others are its units. Where all units
    are gone the bias of the last layer stays; where the module is, nothing does.

    Args:
        name: path of the module in the network
        block: the block
        attribute: the module's name in the block

    Attributes:
        module_types: what it must be, to be cut
        label: the name of this kind of module
    """

    label: str
    module_types: tuple[type[nn.Module], ...]

    def __init__(self, name: str, block: Block, attribute: str):
        self.name, self.block, self.attribute = name, block, attribute

    @property
    def module(self) -> nn.Module:
        return getattr(self.block.module, self.attribute)

    def part(self, per: str) -> tuple[str, nn.Module]:
        if per == "block":
            return self.name.removesuffix(f".{self.attribute}"), self.block.module
        return self.label, self.module

    @property
    def norm(self) -> nn.Module:
        """The norm in front of the module."""
        return getattr(self.block.module, self.block.layout[self.attribute].norm)

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
        return self.block.norm_is_shared(self.attribute)

    @property
    def removable_norm(self) -> nn.Module | None:
        """The norm that goes when the branch goes: none if others read it too."""
        return None if self.norm_is_shared else self.norm

    def unit_claims(self) -> Iterator[Claim]:
        """The claims of the units, the whole module aside."""
        raise NotImplementedError

    def claims(self) -> Iterator[Claim]:
        yield from self.unit_claims()
        yield from whole_output_claims(self.consumer, self.kinds[0])

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
            norm = self.block.layout[self.attribute].norm
            setattr(self.block.module, norm, nn.Identity())
        constant.train(self.block.module.training)
        setattr(self.block.module, self.attribute, constant)

    def resize_(self, masks: Mapping[str, Tensor]) -> None:
        """Let the module's attributes say what its layers are."""


class ConstantSite(Site):
    """What is left of a branch that was emptied; arguments as of `BranchSite`."""

    kinds = ()

    def __init__(self, name: str, block: Block, attribute: str):
        self.name, self.block, self.attribute = name, block, attribute

    @property
    def module(self) -> nn.Module:
        return getattr(self.block.module, self.attribute)

    @property
    def sizes(self) -> dict[str, int]:
        return self.module.sizes

    def claims(self) -> Iterator[Claim]:
        return iter(())

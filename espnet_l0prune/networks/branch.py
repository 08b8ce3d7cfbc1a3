"""This file has what the branches of all blocks share."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from espnet_l0prune.core.claims import Claim, whole_output_claims
from espnet_l0prune.core.replacements import Constant
from espnet_l0prune.core.sites import Site
from espnet_l0prune.networks.block import Block


class BranchSite(Site):
    """A `BranchSite` is a branch of a block: a module and the norm in front of it.

    The first of its kinds is the module as a whole, the others are its units. Where all
    units are gone the bias of the last layer stays; where the module is gone nothing
    does.

    Args:
        name: path of the module in the network
        block: the block
        attribute: the module's name in the block

    Attributes:
        module_types: the classes of modules that such a site can cut
        constant_type: the class of what takes the place of the module once it is emptied
        label: the name of this kind of module
    """

    label: str
    module_types: tuple[type[nn.Module], ...]
    constant_type: type[Constant] = Constant

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
        """Return the norm in front of the module."""
        return getattr(self.block.module, self.block.layout[self.attribute].norm)

    @property
    def readers(self) -> tuple[nn.Module, ...]:
        """Return the layers that read the norm."""
        raise NotImplementedError

    @property
    def consumer(self) -> nn.Module:
        """Return the last layer of the module, which reads the units."""
        raise NotImplementedError

    @property
    def norm_is_shared(self) -> bool:
        """Return whether the residual stream or the merged branches read the norm too."""
        return self.block.norm_is_shared(self.attribute)

    @property
    def removable_norm(self) -> nn.Module | None:
        """Return the norm that goes with the branch, or None if others read it too."""
        return None if self.norm_is_shared else self.norm

    def unit_claims(self) -> Iterator[Claim]:
        """Yield the claims of the units, without those of the module as a whole."""
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
        stays = bool(masks[self.kinds[0]].any())
        if stays and all(bool(mask.any()) for mask in masks.values()):
            self.resize_(masks)
            return
        bias = self.consumer.bias if stays else None
        sizes = dict.fromkeys(self.kinds, 0) | {self.kinds[0]: int(bias is not None)}
        constant = self.constant_type(bias, self.consumer.weight.size(0), sizes)
        if self.removable_norm is not None:
            norm = self.block.layout[self.attribute].norm
            setattr(self.block.module, norm, nn.Identity())
        constant.train(self.block.module.training)
        setattr(self.block.module, self.attribute, constant)

    def resize_(self, masks: Mapping[str, Tensor]) -> None:
        """Set the module's attributes to the sizes that its layers have now."""


class ConstantSite(Site):
    """A `ConstantSite` is what is left of an emptied branch.

    See `BranchSite` for the arguments.
    """

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

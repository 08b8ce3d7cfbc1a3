"""A block is one layer of an encoder or a decoder.

This file has what all blocks share; `blocks/` has one subclass for each of ESPnet's
classes.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from espnet_l0prune.core.batch_norm import unobserved
from espnet_l0prune.core.sites import Shapes
from espnet_l0prune.networks.espnet_modules import FastSelfAttention


class Place(NamedTuple):
    """A `Place` says where a block has a branch.

    Attributes:
        norm: the name of the norm that the branch reads, as an attribute of the block
        label: the branch's name in pictures
        sites: the subclasses of `BranchSite` that may stand there; the type of the
            branch's module decides which one does
    """

    norm: str
    label: str
    sites: tuple[type[Any], ...]


class Block:
    """A `Block` is a view of one of ESPnet's layers, without state of its own.

    This class itself serves layers of unknown classes: it has no branches, and is called
    as all of ESPnet's layers are.

    Args:
        module: ESPnet's layer

    Attributes:
        module_type: ESPnet's class
        layout: the branches that such a block may have, by their names in it, in the
            order of computation
        scaled: the names of branches whose output the block multiplies by its `ff_scale`
        joined: what is joined to the stream in front of the blocks, with all features, if
            anything is
        hands_on: what blocks hand on beside the stream, if they do: such a block stays,
            and has all features of the stream
    """

    module_type: type[nn.Module] = nn.Module
    layout: dict[str, Place] = {}
    scaled: tuple[str, ...] = ()
    joined: str | None = None
    hands_on: str | None = None

    def __init__(self, module: nn.Module):
        self.module = module

    @property
    def branches(self) -> dict[str, Place]:
        """Return the branches in `layout` that this block has."""
        layout = self.layout.items()
        return {k: v for k, v in layout if getattr(self.module, k, None) is not None}

    @property
    def merge(self) -> nn.Module | None:
        """Return the layer that joins branches and writes to the stream, if any."""
        return None

    def is_merged(self, name: str) -> bool:
        """Return whether a branch writes to `merge`, and not to the stream."""
        return False

    def factor(self, name: str) -> float:
        """Return by what a branch's output is multiplied as it is added to the stream."""
        return self.module.ff_scale if name in self.scaled else 1.0

    @property
    def final_norm(self) -> nn.Module | None:
        """Return the norm at the end of the block, if there is one."""
        return None

    @property
    def reads_beside_attention(self) -> bool:
        """Return whether the stream, or its norm, is joined to the attention's output."""
        return getattr(self.module, "concat_after", False)

    def norm_is_shared(self, name: str) -> bool:
        """Return whether anything else reads the norm of a branch too."""
        return not getattr(self.module, "normalize_before", True)

    def macs(self, shapes: Shapes) -> Iterator[float]:
        """Yield multiply-accumulates outside linear layers, and outside branches that
        have sites."""
        for name in self.branches:
            branch = getattr(self.module, name)
            if isinstance(branch, FastSelfAttention):
                for call in shapes.get(branch, ()):
                    yield 2 * math.prod(call.inputs[0])  # pools queries, and keys

    # ESPnet calls a block with the stream (batch, time, size), or a tuple of the stream
    # and positions, followed by masks and the like; it returns as many values.

    @classmethod
    def stream(cls, value: Any) -> Tensor:
        """Return the stream from what a block takes or returns."""
        return cls.stream(value[0]) if isinstance(value, tuple) else value

    @classmethod
    def identity(cls, args: tuple, kwargs: dict) -> tuple:
        """Return what a block returns that does nothing."""
        return args

    @classmethod
    def mix(cls, z: Tensor, args: tuple, kwargs: dict, output: tuple) -> tuple:
        """Return y = x + z (block(x) - x) for a gate z, (1,), in the output's form."""

        def mixed(x: Any, y: Any) -> Any:
            if isinstance(x, tuple):
                return (mixed(x[0], y[0]), *y[1:])
            gate = z.to(y.dtype)
            return gate * y + (1 - gate) * x

        return (mixed(args[0], output[0]), *output[1:])

    def run(self, args: tuple, kwargs: dict, features: Tensor | None) -> Tensor:
        """Return what this block makes of another block's input, which stays as it is.

        Args:
            args, kwargs: the arguments of the other block
            features: the features of the stream that this block has, (n,); None for all

        Returns:
            this block's output, (batch, time, size)
        """
        hidden, *rest = args
        hidden, *positions = hidden if isinstance(hidden, tuple) else (hidden,)
        if features is not None:
            hidden = hidden.index_select(-1, features)
        with unobserved(self.module):
            first = (hidden, *positions) if positions else hidden
            return self.stream(self.module(first, *rest, **kwargs))

    def skip(self) -> nn.Module:
        """Return the module that takes the block's place once it is cut away."""
        return Skip(type(self))


class Skip(nn.Module):
    """A `Skip` takes the place of a block that was cut away: it returns its input.

    Args:
        kind: the kind of block that stood there
    """

    def __init__(self, kind: type[Block]):
        super().__init__()
        self.kind = kind

    def forward(self, *args, **kwargs) -> tuple:
        return self.kind.identity(args, kwargs)

"""What a block of an encoder or a decoder looks like: one subclass for each of ESPnet's
classes, in `blocks/`."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from espnet_l0prune.core.batch_norm import unobserved
from espnet_l0prune.core.sites import Shapes


class Place(NamedTuple):
    """Where a block has a branch.

    Attributes:
        norm: the name in the block of the norm that the branch reads
        label: the branch's name in pictures
        sites: the subclasses of `BranchSite` that may stand there; the module's type
            decides
    """

    norm: str
    label: str
    sites: tuple[type[Any], ...]


class Block:
    """A view on a block: it has no state of its own. As it is, of a class that is not
    known, which is called as ESPnet calls all of them.

    Args:
        module: ESPnet's layer

    Attributes:
        module_type: ESPnet's class
        layout: the branches that such a block may have, by their names in it, in the
            order of computation
    """

    module_type: type[nn.Module] = nn.Module
    layout: dict[str, Place] = {}

    def __init__(self, module: nn.Module):
        self.module = module

    @property
    def branches(self) -> dict[str, Place]:
        """Those of `layout` that this block has."""
        layout = self.layout.items()
        return {k: v for k, v in layout if getattr(self.module, k, None) is not None}

    @property
    def merge(self) -> nn.Module | None:
        """The layer that brings some branches together and writes to the stream."""
        return None

    def is_merged(self, name: str) -> bool:
        """Whether a branch gives to `merge`, and not to the stream."""
        return False

    @property
    def final_norm(self) -> nn.Module | None:
        """The norm of all that the block gives."""
        return None

    @property
    def reads_beside_attention(self) -> bool:
        """Whether the stream, or a norm of it, is joined to what the attention gives."""
        return getattr(self.module, "concat_after", False)

    def norm_is_shared(self, name: str) -> bool:
        """Whether others than the branch read its norm too."""
        return not getattr(self.module, "normalize_before", True)

    def macs(self, shapes: Shapes) -> Iterator[float]:
        """Multiply-accumulates outside the branches and outside linear layers."""
        return iter(())

    # How ESPnet calls a block: with the stream (batch, time, size), or a tuple of it and
    # of positions, and with masks and the like; it gives back as many.

    @classmethod
    def stream(cls, given: Any) -> Tensor:
        """The stream in what a block takes or gives."""
        return cls.stream(given[0]) if isinstance(given, tuple) else given

    @classmethod
    def identity(cls, args: tuple, kwargs: dict) -> tuple:
        """What a block gives that does nothing."""
        return args

    @classmethod
    def mix(cls, z: Tensor, args: tuple, kwargs: dict, output: tuple) -> tuple:
        """y = x + z (block(x) - x), for a gate z: (1,), in the form of the output."""

        def mixed(x: Any, y: Any) -> Any:
            if isinstance(x, tuple):
                return (mixed(x[0], y[0]), *y[1:])
            gate = z.to(y.dtype)
            return gate * y + (1 - gate) * x

        return (mixed(args[0], output[0]), *output[1:])

    def run(self, args: tuple, features: Tensor | None) -> Tensor:
        """What the block makes of the input of another one, which is left as it is.

        Args:
            args: of the other block
            features: those of the stream that this block has, (n,); None for all

        Returns:
            (batch, time, size)
        """
        hidden, *rest = args
        hidden, *positions = hidden if isinstance(hidden, tuple) else (hidden,)
        if features is not None:
            hidden = hidden.index_select(-1, features)
        with unobserved(self.module):
            given = (hidden, *positions) if positions else hidden
            return self.stream(self.module(given, *rest))

    def skip(self) -> nn.Module:
        """What stands for the block once it is cut away."""
        return Skip(type(self))


class Skip(nn.Module):
    """A block that was cut away: it gives what it takes, and has no parameter.

    Args:
        kind: of block that it was
    """

    def __init__(self, kind: type[Block]):
        super().__init__()
        self.kind = kind

    def forward(self, *args, **kwargs) -> tuple:
        return self.kind.identity(args, kwargs)

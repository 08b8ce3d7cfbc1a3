"""Whole blocks, of encoders and of decoders."""

import math
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.hooks import GateHook, ScaleResidual
from espnet_l0prune.core.replacements import Skip
from espnet_l0prune.core.sites import Claim, Shapes, Site


class BlockSite(Site):
    """A block as a whole: it is skipped where its gate is closed.

    Args:
        name: path of the block in the network
        blocks: all of them
        index: the block's place there
    """

    kinds = ("blocks",)

    def __init__(self, name: str, blocks: nn.Sequential, index: int):
        self.name, self.blocks, self.index = name, blocks, index

    @property
    def module(self) -> nn.Module:
        return self.blocks[self.index]

    @property
    def sizes(self) -> dict[str, int]:
        return {"blocks": 0 if isinstance(self.module, Skip) else 1}

    def part(self, per: str) -> tuple[str, nn.Module] | None:
        return (self.name, self.module) if per == "block" else None

    def claims(self) -> Iterator[Claim]:
        return iter(())

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        yield self.module, self.kinds

    def macs(self, shapes: Shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        for name in ("pooling_proj1", "pooling_proj2"):  # a learned average's sums
            for call in shapes.get(getattr(self.module, name, None), ()):
                yield math.prod(call.inputs[0]), ()

    def hooks(
        self, kind: str, gate: HardConcrete
    ) -> Iterator[tuple[nn.Module, GateHook]]:
        yield self.module, ScaleResidual(gate)

    def finish_(self, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
        if not bool(kept[self.name]["blocks"].any()):
            self.blocks[self.index] = Skip()

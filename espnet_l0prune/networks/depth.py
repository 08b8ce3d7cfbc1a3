"""Whole blocks of encoders and decoders can be pruned."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from espnet_l0prune.core.claims import Claim
from espnet_l0prune.core.gates import HardConcrete
from espnet_l0prune.core.hooks import GateHook, ScaleResidual
from espnet_l0prune.core.sites import Shapes, Site
from espnet_l0prune.networks.block import Skip
from espnet_l0prune.networks.blocks import block_of


class BlockSite(Site):
    """A `BlockSite` is a block as a whole, which is skipped if its gate is closed.

    Args:
        name: path of the block in the network
        blocks: all blocks of the network
        index: the block's place among them
    """

    kinds = ("blocks",)

    def __init__(self, name: str, blocks: nn.Sequential | nn.ModuleList, index: int):
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

    def why_not(self, kind: str) -> str | None:
        what = block_of(self.module).hands_on
        return f"its blocks hand on {what}" if what else None

    def dependents(self) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
        yield self.module, self.kinds

    def macs(self, shapes: Shapes) -> Iterator[tuple[float, tuple[str, ...]]]:
        for macs in block_of(self.module).macs(shapes):
            yield macs, ()

    def hooks(
        self, kind: str, gate: HardConcrete
    ) -> Iterator[tuple[nn.Module, GateHook]]:
        yield self.module, ScaleResidual(gate, type(block_of(self.module)))

    def finish_(self, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
        there = not isinstance(self.module, Skip)  # it may have been cut before
        if there and not bool(kept[self.name]["blocks"].any()):
            self.blocks[self.index] = block_of(self.module).skip()


def is_closed(block: nn.Module) -> bool:
    """Return whether a block was cut away, or would be because its gate is closed."""
    gate = getattr(block, "blocks_gate", None)
    return isinstance(block, Skip) or (gate is not None and not gate.is_open())

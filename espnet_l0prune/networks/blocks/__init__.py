"""The kinds of blocks: one file for each of ESPnet's classes, named in `BLOCKS`."""

from torch import nn

from espnet_l0prune.networks.block import Block
from espnet_l0prune.networks.blocks.branchformer import BranchformerBlock
from espnet_l0prune.networks.blocks.conformer import ConformerBlock
from espnet_l0prune.networks.blocks.decoder import DecoderBlock
from espnet_l0prune.networks.blocks.e_branchformer import EBranchformerBlock
from espnet_l0prune.networks.blocks.transformer import TransformerBlock

KINDS: tuple[type[Block], ...] = (
    ConformerBlock,
    TransformerBlock,
    BranchformerBlock,
    EBranchformerBlock,
    DecoderBlock,
)
BLOCKS = {kind.module_type: kind for kind in KINDS}


def block_of(module: nn.Module) -> Block:
    """The view on a block; one without branches where its class is not known."""
    return BLOCKS.get(type(module), Block)(module)

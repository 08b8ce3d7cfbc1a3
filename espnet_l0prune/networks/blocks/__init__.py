"""Each of ESPnet's classes of blocks has a class in a file of its own, named here."""

from torch import nn

from espnet_l0prune.networks.block import Block
from espnet_l0prune.networks.blocks.branchformer import BranchformerBlock
from espnet_l0prune.networks.blocks.conformer import ConformerBlock
from espnet_l0prune.networks.blocks.contextual import (
    ContextualConformerBlock,
    ContextualTransformerBlock,
)
from espnet_l0prune.networks.blocks.decoder import DecoderBlock
from espnet_l0prune.networks.blocks.e_branchformer import (
    EBranchformerBlock,
    EBranchformerCTCBlock,
)
from espnet_l0prune.networks.blocks.s3prl import S3prlBlock, WavLMBlock
from espnet_l0prune.networks.blocks.transducer import (
    TransducerBranchformerBlock,
    TransducerConformerBlock,
    TransducerConv1dBlock,
    TransducerEBranchformerBlock,
)
from espnet_l0prune.networks.blocks.transformer import TransformerBlock
from espnet_l0prune.networks.blocks.whisper import WhisperBlock

KINDS: tuple[type[Block], ...] = (
    ConformerBlock,
    TransformerBlock,
    BranchformerBlock,
    EBranchformerBlock,
    EBranchformerCTCBlock,
    ContextualConformerBlock,
    ContextualTransformerBlock,
    DecoderBlock,
    WhisperBlock,
    S3prlBlock,
    WavLMBlock,
    TransducerConformerBlock,
    TransducerBranchformerBlock,
    TransducerEBranchformerBlock,
    TransducerConv1dBlock,
)
BLOCKS = {kind.module_type: kind for kind in KINDS}


def block_of(module: nn.Module) -> Block:
    """Return the view of a block; a layer of unknown class has one without branches."""
    return BLOCKS.get(type(module), Block)(module)

"""These are the E-Branchformer's block and OWSM-CTC's, which has one branch more."""

from torch import nn

from espnet_l0prune.networks.block import Block, Place
from espnet_l0prune.networks.branches import (
    FEED_FORWARD,
    GATING,
    SELF_ATTENTION,
    SOURCE_ATTENTION,
)
from espnet_l0prune.networks.espnet_modules import (
    EBranchformerCTCEncoderLayer,
    EBranchformerEncoderLayer,
)


class EBranchformerBlock(Block):
    """An `EBranchformerBlock` has two merged branches between feed-forward modules."""

    module_type = EBranchformerEncoderLayer
    layout = {
        "feed_forward_macaron": Place("norm_ff_macaron", "FFN 1", FEED_FORWARD),
        "attn": Place("norm_mha", "attention", SELF_ATTENTION),
        "cgmlp": Place("norm_mlp", "cgMLP", GATING),
        "feed_forward": Place("norm_ff", "FFN", FEED_FORWARD),
    }
    scaled = ("feed_forward_macaron", "feed_forward")

    @property
    def merge(self) -> nn.Module:
        return self.module.merge_proj

    def is_merged(self, name: str) -> bool:
        return name in ("attn", "cgmlp")

    @property
    def final_norm(self) -> nn.Module:
        return self.module.norm_final


class EBranchformerCTCBlock(EBranchformerBlock):
    """An `EBranchformerCTCBlock`, of OWSM-CTC, may attend to a prompt (Peng et al. 2024,
    arXiv 2402.12654).
    """

    module_type = EBranchformerCTCEncoderLayer
    layout = {
        **EBranchformerBlock.layout,
        "cross_attn": Place("norm_cross_attn", "prompt att.", SOURCE_ATTENTION),
    }
    joined = "the embeddings of language and task"

"""The Branchformer's block."""

import math
from collections.abc import Iterator

from torch import nn

from espnet_l0prune.core.sites import Shapes
from espnet_l0prune.networks.block import Block, Place
from espnet_l0prune.networks.branches import GATING, SELF_ATTENTION
from espnet_l0prune.networks.espnet_modules import BranchformerEncoderLayer


class BranchformerBlock(Block):
    """Two branches side by side, which are merged."""

    module_type = BranchformerEncoderLayer
    layout = {
        "attn": Place("norm_mha", "attention", SELF_ATTENTION),
        "cgmlp": Place("norm_mlp", "cgMLP", GATING),
    }

    @property
    def merge(self) -> nn.Module | None:
        merge = self.module.merge_proj  # an identity where there is one branch alone
        return merge if isinstance(merge, nn.Linear) else None

    def is_merged(self, name: str) -> bool:
        return self.merge is not None

    @property
    def final_norm(self) -> nn.Module | None:
        return self.module.norm_final

    def macs(self, shapes: Shapes) -> Iterator[float]:
        # a learned average's sums
        for name in ("pooling_proj1", "pooling_proj2"):
            for call in shapes.get(getattr(self.module, name, None), ()):
                yield math.prod(call.inputs[0])

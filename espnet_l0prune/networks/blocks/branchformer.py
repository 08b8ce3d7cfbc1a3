"""This is the Branchformer's block."""

import math
from collections.abc import Iterator

from torch import nn

from espnet_l0prune.core.sites import Shapes
from espnet_l0prune.networks.block import Block, Place
from espnet_l0prune.networks.branches import GATING, SELF_ATTENTION
from espnet_l0prune.networks.espnet_modules import BranchformerEncoderLayer


class BranchformerBlock(Block):
    """A `BranchformerBlock` has two branches side by side, whose outputs are merged."""

    module_type = BranchformerEncoderLayer
    layout = {
        "attn": Place("norm_mha", "attention", SELF_ATTENTION),
        "cgmlp": Place("norm_mlp", "cgMLP", GATING),
    }

    @property
    def merge(self) -> nn.Module | None:
        merge = self.module.merge_proj  # an identity if there is only one branch
        return merge if isinstance(merge, nn.Linear) else None

    def is_merged(self, name: str) -> bool:
        return self.merge is not None

    @property
    def final_norm(self) -> nn.Module | None:
        return self.module.norm_final

    def macs(self, shapes: Shapes) -> Iterator[float]:
        yield from super().macs(shapes)
        # a learned average multiplies and sums the branches
        for name in ("pooling_proj1", "pooling_proj2"):
            for call in shapes.get(getattr(self.module, name, None), ()):
                yield math.prod(call.inputs[0])

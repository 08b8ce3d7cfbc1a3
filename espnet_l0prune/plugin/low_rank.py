"""An encoder with layers that are products of two smaller ones."""

from collections.abc import Mapping
from typing import Any

from espnet_l0prune.networks.espnet_modules import ConformerEncoder
from espnet_l0prune.networks.low_rank import LowRank, can_factor
from espnet_l0prune.plugin.signature import check_options, show_stock_options


class LowRankConformerEncoder(ConformerEncoder):
    """`encoder: low_rank_conformer`: every option of ESPnet's Conformer, and

    Args:
        ranks: by the path of a linear layer or a convolution in the encoder, the rank of
            the product that it is

    Raises:
        ValueError: an unknown option, a path that leads to no such layer, or a rank
            below 1
    """

    def __init__(
        self, *sizes: int, ranks: Mapping[str, int] | None = None, **stock_conf: Any
    ):
        check_options(type(self), stock_conf, "encoder_conf")
        super().__init__(*sizes, **stock_conf)
        layers = dict(self.named_modules())
        for path, rank in (ranks or {}).items():
            if not can_factor(layers.get(path)) or rank < 1:
                raise ValueError(
                    f"encoder_conf: ranks has {path!r}: {rank}; expected the path of a "
                    "linear layer or of a convolution that is not depthwise, and a "
                    "rank from 1 on"
                )
            parent, _, name = path.rpartition(".")
            setattr(layers[parent], name, LowRank(layers[path], rank))


show_stock_options(LowRankConformerEncoder, LowRankConformerEncoder, ConformerEncoder)

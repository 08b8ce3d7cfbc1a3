"""An encoder with layers that are products of two smaller ones.

ESPnet knows it by the name `low_rank_conformer` where `register` was called. As a
program, this file is ESPnet's training command with that name: see `TRAIN_PROGRAM`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.bin.asr_train import main
from espnet2.tasks.asr import encoder_choices
from torch import Tensor, nn

TRAIN_PROGRAM = f"python3 {Path(__file__).resolve()}"  # of the recipe's run.sh


def can_factor(layer: nn.Module | None) -> bool:
    """Whether a layer is one matrix."""
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, (nn.Conv1d, nn.Conv2d)) and layer.groups == 1
    )


class LowRank(nn.Module):
    """Two layers in place of one: to `rank` channels, and from there.

    Of a convolution, the first has its kernel, the second a kernel of one.

    Args:
        layer: whose sizes it takes, but not the weights; see `can_factor`
        rank: number of channels between the two
    """

    def __init__(self, layer: nn.Module, rank: int):
        super().__init__()
        bias = layer.bias is not None
        if isinstance(layer, nn.Linear):
            self.first = nn.Linear(layer.in_features, rank, bias=False)
            self.second = nn.Linear(rank, layer.out_features, bias=bias)
            return
        self.first = type(layer)(
            layer.in_channels,
            rank,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            bias=False,
        )
        self.second = type(layer)(rank, layer.out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class LowRankConformerEncoder(ConformerEncoder):
    """`encoder: low_rank_conformer`: every option of ESPnet's Conformer, and

    Args:
        ranks: by the path of a linear layer or a convolution in the encoder, the rank of
            the product that it is

    Raises:
        ValueError: a path that leads to no such layer, or a rank below 1
    """

    def __init__(
        self, *sizes: int, ranks: Mapping[str, int] | None = None, **stock_conf: Any
    ):
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


def register() -> None:
    """Let ESPnet's ASR task know the encoder in this process."""
    encoder_choices.classes["low_rank_conformer"] = LowRankConformerEncoder


if __name__ == "__main__":
    register()
    main()

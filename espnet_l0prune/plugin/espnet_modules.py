"""The parts of ESPnet that we build on, imported in one place.

Upstream moves `espnet.nets` to `espnet2.legacy.nets`: only this file has to follow.
"""

try:
    from espnet.nets.pytorch_backend.conformer.convolution import ConvolutionModule
    from espnet.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
    from espnet.nets.pytorch_backend.transformer.positionwise_feed_forward import (
        PositionwiseFeedForward,
    )
except ImportError:
    from espnet2.legacy.nets.pytorch_backend.conformer.convolution import (
        ConvolutionModule,
    )
    from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
        MultiHeadedAttention,
    )
    from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
        PositionwiseFeedForward,
    )

__all__ = ["ConvolutionModule", "MultiHeadedAttention", "PositionwiseFeedForward"]

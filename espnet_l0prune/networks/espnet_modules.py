"""This file imports ESPnet's networks and layers, wherever the installed ESPnet has them.

Up to version 202511 the layers are in `espnet.nets`, from 202609 on in
`espnet2.legacy.nets`. Those of Whisper are in the package openai-whisper, which ESPnet
does not need for anything else.
"""

import importlib
from typing import Any

from espnet2.asr.decoder.abs_decoder import AbsDecoder
from espnet2.asr.decoder.transformer_decoder import (
    BaseTransformerDecoder,
    TransformerDecoder,
)
from espnet2.asr.decoder.whisper_decoder import OpenAIWhisperDecoder
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.branchformer_encoder import (
    BranchformerEncoder,
    BranchformerEncoderLayer,
)
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.contextual_block_conformer_encoder import (
    ContextualBlockConformerEncoder,
)
from espnet2.asr.encoder.contextual_block_transformer_encoder import (
    ContextualBlockTransformerEncoder,
)
from espnet2.asr.encoder.e_branchformer_ctc_encoder import EBranchformerCTCEncoder
from espnet2.asr.encoder.e_branchformer_ctc_encoder import (
    EBranchformerEncoderLayer as EBranchformerCTCEncoderLayer,
)
from espnet2.asr.encoder.e_branchformer_encoder import (
    EBranchformerEncoder,
    EBranchformerEncoderLayer,
)
from espnet2.asr.encoder.multiconvformer_encoder import MultiConvConformerEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from espnet2.asr.encoder.transformer_encoder_multispkr import (
    TransformerEncoder as MultiSpeakerTransformerEncoder,
)
from espnet2.asr.encoder.whisper_encoder import OpenAIWhisperEncoder
from espnet2.asr.frontend.cnn import CNNFrontend, Dim1LayerNorm, TransposedLayerNorm
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.asr.frontend.espnet_ssl import ESPnetSSLFrontend
from espnet2.asr.frontend.s3prl import S3prlFrontend
from espnet2.asr.layers.cgmlp import ConvolutionalGatingMLP
from espnet2.asr.layers.fastformer import FastSelfAttention
from espnet2.asr.layers.multiconv_cgmlp import MultiConvolutionalGatingMLP
from espnet2.asr.preencoder.linear import LinearProjection
from espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank import RNNTLossNumba
from espnet2.asr_transducer.encoder.blocks.branchformer import (
    Branchformer as TransducerBranchformer,
)
from espnet2.asr_transducer.encoder.blocks.conformer import (
    Conformer as TransducerConformer,
)
from espnet2.asr_transducer.encoder.blocks.conv1d import Conv1d as TransducerConv1d
from espnet2.asr_transducer.encoder.blocks.conv_input import ConvInput
from espnet2.asr_transducer.encoder.blocks.ebranchformer import (
    EBranchformer as TransducerEBranchformer,
)
from espnet2.asr_transducer.encoder.encoder import Encoder as TransducerEncoder
from espnet2.asr_transducer.encoder.modules.attention import (
    RelPositionMultiHeadedAttention as TransducerAttention,
)
from espnet2.asr_transducer.encoder.modules.convolution import (
    ConformerConvolution as TransducerConvolution,
)
from espnet2.asr_transducer.encoder.modules.convolution import (
    ConvolutionalSpatialGatingUnit,
)
from espnet2.asr_transducer.normalization import RMSNorm
from espnet2.asr_transducer.utils import TooShortUttError as TransducerTooShortUttError
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN
from espnet2.mt.frontend.embedding import Embedding, PatchEmbedding
from torch import nn

__all__ = [
    "SUBSAMPLINGS",
    "TOKEN_FRONTENDS",
    "TOO_SHORT",
    "AbsDecoder",
    "AbsEncoder",
    "BaseTransformerDecoder",
    "BatchScorerInterface",
    "BranchformerEncoder",
    "BranchformerEncoderLayer",
    "CNNFrontend",
    "ConformerEncoder",
    "ConformerLayer",
    "ContextualBlockConformerEncoder",
    "ContextualBlockTransformerEncoder",
    "ContextualConformerLayer",
    "ContextualTransformerLayer",
    "Conv1dLinear",
    "Conv2dSubsampling8",
    "Conv2dSubsamplingWOPosEnc",
    "ConvInput",
    "ConvolutionModule",
    "ConvolutionalGatingMLP",
    "ConvolutionalPositionalEmbedding",
    "ConvolutionalSpatialGatingUnit",
    "DecoderLayer",
    "DefaultFrontend",
    "Dim1LayerNorm",
    "EBranchformerCTCEncoder",
    "EBranchformerCTCEncoderLayer",
    "EBranchformerEncoder",
    "EBranchformerEncoderLayer",
    "ESPnetSSLFrontend",
    "FastSelfAttention",
    "GlobalMVN",
    "LabelSmoothingLoss",
    "LinearProjection",
    "MultiConvConformerEncoder",
    "MultiConvolutionalGatingMLP",
    "MultiHeadedAttention",
    "MultiLayeredConv1d",
    "MultiSpeakerTransformerEncoder",
    "OpenAIWhisperDecoder",
    "OpenAIWhisperEncoder",
    "PositionalEncoding",
    "PositionwiseFeedForward",
    "RMSNorm",
    "RNNTLossNumba",
    "RelPositionalEncoding",
    "S3prlFrontend",
    "TooShortUttError",
    "TransducerAttention",
    "TransducerBranchformer",
    "TransducerConformer",
    "TransducerConv1d",
    "TransducerConvolution",
    "TransducerEBranchformer",
    "TransducerEncoder",
    "TransformerDecoder",
    "TransformerEncoder",
    "TransformerLayer",
    "TransposedLayerNorm",
    "UtteranceMVN",
    "WhisperAttention",
    "WhisperLayer",
    "WhisperNorm",
    "check_short_utt",
    "make_pad_mask",
]

_PLACES = ("espnet.nets", "espnet2.legacy.nets")


def _find(module: str, name: str, folder: str = ".pytorch_backend") -> Any:
    for place in _PLACES:
        try:
            return getattr(importlib.import_module(f"{place}{folder}.{module}"), name)
        except ModuleNotFoundError:
            continue
    raise ImportError(f"ESPnet has no {module}.{name} in {' or '.join(_PLACES)}")


ConformerLayer = _find("conformer.encoder_layer", "EncoderLayer")
ConvolutionModule = _find("conformer.convolution", "ConvolutionModule")
ContextualConformerLayer = _find(
    "conformer.contextual_block_encoder_layer", "ContextualBlockEncoderLayer"
)
ContextualTransformerLayer = _find(
    "transformer.contextual_block_encoder_layer", "ContextualBlockEncoderLayer"
)
TransformerLayer = _find("transformer.encoder_layer", "EncoderLayer")
LabelSmoothingLoss = _find("transformer.label_smoothing_loss", "LabelSmoothingLoss")
DecoderLayer = _find("transformer.decoder_layer", "DecoderLayer")
MultiHeadedAttention = _find("transformer.attention", "MultiHeadedAttention")
PositionwiseFeedForward = _find(
    "transformer.positionwise_feed_forward", "PositionwiseFeedForward"
)
ConvolutionalPositionalEmbedding = _find(
    "transformer.embedding", "ConvolutionalPositionalEmbedding"
)
PositionalEncoding = _find("transformer.embedding", "PositionalEncoding")
RelPositionalEncoding = _find("transformer.embedding", "RelPositionalEncoding")
TooShortUttError = _find("transformer.subsampling", "TooShortUttError")
# What an encoder raises for speech that is too short: that of the task asr_transducer
# has an error of its own
TOO_SHORT = TooShortUttError, TransducerTooShortUttError
check_short_utt = _find("transformer.subsampling", "check_short_utt")
make_pad_mask = _find("nets_utils", "make_pad_mask")
BatchScorerInterface = _find("scorer_interface", "BatchScorerInterface", folder="")
MultiLayeredConv1d = _find("transformer.multi_layer_conv", "MultiLayeredConv1d")
Conv1dLinear = _find("transformer.multi_layer_conv", "Conv1dLinear")
Conv2dSubsamplingWOPosEnc = _find(
    "transformer.subsampling_without_posenc", "Conv2dSubsamplingWOPosEnc"
)
SUBSAMPLINGS = tuple(
    _find("transformer.subsampling", name)
    for name in (
        "Conv1dSubsampling1",
        "Conv1dSubsampling2",
        "Conv1dSubsampling3",
        "Conv2dSubsampling",
        "Conv2dSubsampling1",
        "Conv2dSubsampling2",
        "Conv2dSubsampling6",
        "Conv2dSubsampling8",
    )
)


Conv2dSubsampling8 = _find("transformer.subsampling", "Conv2dSubsampling8")
TOKEN_FRONTENDS = Embedding, PatchEmbedding


def _find_whisper(name: str) -> type[nn.Module]:
    """Return a layer of openai-whisper; without it, a class that no layer is of."""
    try:
        return getattr(importlib.import_module("whisper.model"), name)
    except ImportError:
        return type(name, (nn.Module,), {})


WhisperLayer = _find_whisper("ResidualAttentionBlock")
WhisperAttention = _find_whisper("MultiHeadAttention")
WhisperNorm = _find_whisper("LayerNorm")

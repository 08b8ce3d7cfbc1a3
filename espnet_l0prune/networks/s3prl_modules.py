"""This file imports the layers of s3prl, with which ESPnet runs self-supervised models.

ESPnet does not need s3prl for anything else. Without it, each name stands for a class
that no layer is of.
"""

import importlib
from typing import Any

from torch import nn

__all__ = [
    "FLOAT32_NORMS",
    "UPSTREAMS",
    "S3prlAttention",
    "S3prlLayer",
    "WavLMAttention",
    "WavLMLayer",
]


def _find(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(f"s3prl.upstream.{module}"), name)
    except (ImportError, AttributeError, OSError):  # it is another version's, or damaged
        return type(name, (nn.Module,), {})


_WAV2VEC2 = "wav2vec2.wav2vec2_model"  # HuBERT's layers are those of wav2vec 2.0
S3prlLayer = _find(_WAV2VEC2, "TransformerSentenceEncoderLayer")
S3prlAttention = _find(_WAV2VEC2, "MultiheadAttention")
WavLMLayer = _find("wavlm.WavLM", "TransformerSentenceEncoderLayer")
WavLMAttention = _find("wavlm.modules", "MultiheadAttention")
UPSTREAMS = (
    _find("hubert.hubert_model", "HubertModel"),
    _find(_WAV2VEC2, "Wav2Vec2Model"),
    _find("wavlm.WavLM", "WavLM"),
)
FLOAT32_NORMS = tuple(
    _find(module, name)
    for module in (_WAV2VEC2, "wavlm.modules")
    for name in ("Fp32LayerNorm", "Fp32GroupNorm")
)

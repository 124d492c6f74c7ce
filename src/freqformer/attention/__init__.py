"""Frequency-banded attention, as a function and as a layer."""

from freqformer.attention.base import AttentionLayer
from freqformer.attention.dense import DenseAttention
from freqformer.attention.function import frequency_attention
from freqformer.attention.inputs import NORM_EPS, QKV, LayerCall, Projected
from freqformer.attention.layer import FreqAttention, make_attention
from freqformer.ops.parameters import RotaryEmbedding

__all__ = [
    "NORM_EPS",
    "QKV",
    "AttentionLayer",
    "DenseAttention",
    "FreqAttention",
    "LayerCall",
    "Projected",
    "RotaryEmbedding",
    "frequency_attention",
    "make_attention",
]

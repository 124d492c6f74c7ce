"""Frequency-banded attention, as a function and as a layer."""

from freqformer.attention.function import frequency_attention
from freqformer.attention.layer import NORM_EPS, FreqAttention, Tensors
from freqformer.attention.options import SOFT, Attention, Routing

__all__ = [
    "NORM_EPS",
    "SOFT",
    "Attention",
    "FreqAttention",
    "Routing",
    "Tensors",
    "frequency_attention",
]

"""FreqFormer: frequency-banded attention for long video diffusion transformers (arXiv 2604.22808).

The operations need torch alone. The model and the pipeline need diffusers and are imported when first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from freqformer.attention import FreqAttention, frequency_attention
from freqformer.bands import split_bands
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.parameters import AttentionParameters
from freqformer.plan import build_plan

if TYPE_CHECKING:
    from freqformer.models.pipeline import FreqFormerPipeline
    from freqformer.models.transformer import FreqFormerTransformer3DModel

__version__ = "0.1.0"

_LAZY = {
    "FreqFormerPipeline": "freqformer.models.pipeline",
    "FreqFormerTransformer3DModel": "freqformer.models.transformer",
}

__all__ = [
    "AttentionParameters",
    "Band",
    "FreqAttention",
    "FreqFormerConfig",
    "FreqFormerPipeline",
    "FreqFormerTransformer3DModel",
    "Grid",
    "build_plan",
    "frequency_attention",
    "split_bands",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'freqformer' has no attribute {name!r}; it has {', '.join(__all__)}")

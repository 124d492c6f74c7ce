"""FreqFormer: frequency-banded attention for long video diffusion transformers (arXiv 2604.22808).

Names are imported when they are first used, so that `freqformer --help` need not wait for torch.
The operations need torch alone; the model and the pipeline need diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from freqformer.attention import FreqAttention, frequency_attention
    from freqformer.bands import split_bands
    from freqformer.config import Band, FreqFormerConfig
    from freqformer.grid import Grid
    from freqformer.models.pipeline import FreqFormerPipeline
    from freqformer.models.transformer import FreqFormerTransformer3DModel
    from freqformer.ops.parameters import AttentionParameters
    from freqformer.plan import build_plan

__version__ = "0.1.0"

_PLACES = {
    "AttentionParameters": "freqformer.ops.parameters",
    "Band": "freqformer.config",
    "FreqAttention": "freqformer.attention",
    "FreqFormerConfig": "freqformer.config",
    "FreqFormerPipeline": "freqformer.models.pipeline",
    "FreqFormerTransformer3DModel": "freqformer.models.transformer",
    "Grid": "freqformer.grid",
    "build_plan": "freqformer.plan",
    "frequency_attention": "freqformer.attention",
    "split_bands": "freqformer.bands",
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
    if name not in _PLACES:
        raise AttributeError(
            f"module 'freqformer' has no attribute {name!r}; it has {', '.join(__all__)}"
        )
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value  # the next use of the name does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

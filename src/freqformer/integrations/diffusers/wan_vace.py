"""Wan VACE: Wan's layers, and beside some of them one that attends to the control video."""

from __future__ import annotations

from typing import Any

from freqformer.integrations.diffusers.processor import Family, block_layers
from freqformer.integrations.diffusers.wan import WanProcessor, video_tokens


def _layers(transformer: Any) -> list[tuple[str, Any]]:
    """In order of depth; where there are two, the control's comes second."""
    own = block_layers(transformer, "blocks", "attn1")
    control = block_layers(transformer, "vace_blocks", "attn1")
    beside = dict(zip(transformer.config.vace_layers, control, strict=True))
    ordered = []
    for place, layer in enumerate(own):
        ordered += [layer, beside[place]] if place in beside else [layer]
    return ordered


FAMILY = Family(_layers, video_tokens, WanProcessor, ("WanAttnProcessor",))

"""The pipelines that embed prompts in ways of their own."""

from __future__ import annotations

from freqformer.training.cache.prompts import hunyuan_video, hunyuan_video15, minimax_h3
from freqformer.training.cache.prompts.family import PromptFamily

PROMPTS: dict[str, PromptFamily] = {
    "HunyuanVideoPipeline": hunyuan_video.FAMILY,
    "HunyuanVideo15Pipeline": hunyuan_video15.FAMILY,
    "MiniMaxH3ModularPipeline": minimax_h3.FAMILY,
}
"""By the pipeline's class."""

"""The pipelines that embed prompts in ways of their own."""

from __future__ import annotations

from freqformer.training.cache.prompts import hunyuan_video
from freqformer.training.cache.prompts.family import PromptFamily

PROMPTS: dict[str, PromptFamily] = {
    "HunyuanVideoPipeline": hunyuan_video.FAMILY,
}
"""By the pipeline's class."""

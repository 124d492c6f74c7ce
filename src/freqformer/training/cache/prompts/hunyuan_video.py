"""HunyuanVideo: an inner layer of Llama under a template, token by token, and CLIP's pooled
text."""

from __future__ import annotations

from typing import Any

from freqformer.training.cache.prompts.family import PromptEmbeds, PromptFamily

POOLED = "pooled_embeds"
MOST_TOKENS = 256
"""`max_sequence_length` of its pipeline."""


def _embed(pipeline: Any, prompt: str, most_tokens: int) -> PromptEmbeds:
    embeds, pooled, mask = pipeline.encode_prompt(
        prompt,
        device=pipeline.text_encoder.device,
        max_sequence_length=min(most_tokens, MOST_TOKENS),
    )
    return PromptEmbeds(embeds[0][mask[0].bool()], {POOLED: pooled[0]})


FAMILY = PromptFamily(
    ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"), _embed, (POOLED,)
)

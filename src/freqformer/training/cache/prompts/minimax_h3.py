"""MiniMax-H3: an inner layer of Qwen3-VL, of the prompt as it is, without a template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from freqformer._optional import needs
from freqformer.training.cache.prompts.family import PromptEmbeds, PromptFamily

ENCODER = "text_encoder"
TOKENIZER = "tokenizer"
EMPTY = " "
"""In place of the empty caption, of which the tokenizer makes no token at all; the model was
distilled with its guidance and is asked without a prompt nowhere."""


class _TextOnly:
    """In place of the encoder's processor, which text needs for this alone."""

    def create_mm_token_type_ids(self, token_ids: list[list[int]]) -> list[list[int]]:
        return [[0] * len(ids) for ids in token_ids]


def _load(folder: Path, dtype: torch.dtype) -> Any:
    with needs("text"):
        from diffusers.modular_pipelines.minimax_h3.encoders import MiniMaxH3TextEncoderStep
        from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    encoder: Any = Qwen3VLForConditionalGeneration.from_pretrained(
        str(folder / ENCODER), dtype=dtype, use_safetensors=True, local_files_only=True
    )
    pipeline = MiniMaxH3TextEncoderStep().init_pipeline()
    pipeline.update_components(
        text_encoder=encoder.eval().requires_grad_(False),
        tokenizer=AutoTokenizer.from_pretrained(str(folder / TOKENIZER), local_files_only=True),
    )
    return pipeline


def _embed(pipeline: Any, prompt: str, most_tokens: int) -> PromptEmbeds:
    with needs("text"):
        from diffusers.modular_pipelines.minimax_h3.encoders import get_qwen3vl_prompt_embeds

    ids = pipeline.tokenizer(prompt or EMPTY, add_special_tokens=False)["input_ids"]
    # No token sees what comes after it, so that the beginning of a prompt is embedded as in all
    # of it.
    embeds = get_qwen3vl_prompt_embeds(
        pipeline.text_encoder,
        _TextOnly(),
        ids[:most_tokens],
        text_encoder_layer=pipeline.text_encoder_layer,
        device=pipeline.text_encoder.device,
        dtype=pipeline.text_encoder.dtype,
    )
    return PromptEmbeds(embeds[0], {})


FAMILY = PromptFamily((ENCODER, TOKENIZER), _embed, load=_load)

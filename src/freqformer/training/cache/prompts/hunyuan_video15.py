"""HunyuanVideo 1.5: an inner layer of Qwen2.5-VL under a template, and ByT5 of what a prompt has in
quotation marks, to be written in the video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from freqformer._optional import needs
from freqformer.training.cache.prompts.family import PromptEmbeds, PromptFamily

GLYPHS = "glyph_embeds"
GLYPH_MASK = "glyph_mask"
COMPONENTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


@dataclass(frozen=True)
class _Encoders:
    """The parts that read prompts: the pipeline itself can't be made without its VAE."""

    language: Any
    tokenizer: Any
    glyphs: Any
    glyph_tokenizer: Any

    def set_progress_bar_config(self, **_settings: Any) -> None:
        """As pipelines have it: there is no bar."""

    def to(self, device: torch.device) -> _Encoders:
        """It, on a device."""
        self.language.to(device)
        self.glyphs.to(device)
        return self


def _load(folder: Path, dtype: torch.dtype) -> _Encoders:
    with needs("text"):
        from transformers import AutoTokenizer, Qwen2_5_VLTextModel, T5EncoderModel

    models: list[Any] = [
        kind.from_pretrained(
            str(folder / name), dtype=dtype, use_safetensors=True, local_files_only=True
        )
        for kind, name in ((Qwen2_5_VLTextModel, COMPONENTS[0]), (T5EncoderModel, COMPONENTS[1]))
    ]
    language, glyphs = (model.eval().requires_grad_(False) for model in models)
    first, second = (
        AutoTokenizer.from_pretrained(str(folder / name), local_files_only=True)
        for name in COMPONENTS[2:]
    )
    return _Encoders(language, first, glyphs, second)


def _embed(encoders: _Encoders, prompt: str, most_tokens: int) -> PromptEmbeds:
    with needs("text"):
        from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import (
            HunyuanVideo15Pipeline,
        )

    device = encoders.language.device
    embeds, mask = HunyuanVideo15Pipeline._get_mllm_prompt_embeds(
        encoders.language, encoders.tokenizer, prompt, device
    )
    glyphs, glyph_mask = HunyuanVideo15Pipeline._get_byt5_prompt_embeds(
        encoders.glyph_tokenizer, encoders.glyphs, prompt, device
    )
    tokens = embeds[0][mask[0].bool()][:most_tokens]
    return PromptEmbeds(tokens, {GLYPHS: glyphs[0], GLYPH_MASK: glyph_mask[0].float()})


FAMILY = PromptFamily(COMPONENTS, _embed, (GLYPHS, GLYPH_MASK), _load)

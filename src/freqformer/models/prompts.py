"""What a call of the pipeline is told in words, and guidance by it.

Shape legend: B videos, L text tokens, E their channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from freqformer._validate import check_number, check_whole, shown
from freqformer.models.text import ENCODERS, TextModel

GUIDANCE = 4.0
"""Where a prompt is given and no scale."""
MOST_GUIDANCE = 1000.0
MOST_TOKENS = 8192


@dataclass(frozen=True)
class GivenText:
    """Embeddings that a caller gives."""

    embeds: Any
    mask: Any
    prefix: str = ""
    """Of the arguments' names."""

    def check(self) -> None:
        """Raise ValueError for what are no tensors, and a mask of nothing."""
        names = (f"{self.prefix}prompt_embeds", f"{self.prefix}prompt_attention_mask")
        for name, value in zip(names, (self.embeds, self.mask), strict=True):
            if value is not None and not isinstance(value, Tensor):
                raise ValueError(f"{name} is a {type(value).__name__}; a tensor or None is allowed")
        if self.mask is not None and self.embeds is None:
            raise ValueError(
                f"{names[1]} is given and {names[0]} is None; a mask is of embeddings: pass both"
            )


@dataclass(frozen=True)
class TextConditions:
    """What the transformer reads at every step."""

    embeds: Tensor | None
    """(B, L, E); under guidance (2 B, L, E), the negative ones first."""
    mask: Tensor | None
    """(B or 2 B, L)."""
    guidance: float

    def to(self, device: torch.device, dtype: torch.dtype) -> TextConditions:
        """On a device; embeddings in a dtype."""
        embeds = None if self.embeds is None else self.embeds.to(device, dtype)
        return TextConditions(
            embeds, None if self.mask is None else self.mask.to(device), self.guidance
        )

    def repeated(self, latents: Tensor) -> Tensor:
        """The latents (B, ...) as often as each is needed."""
        return latents if self.guidance == 1 else torch.cat([latents, latents])

    def guided(self, velocity: Tensor) -> Tensor:
        """One velocity (B, ...) of those that were predicted."""
        if self.guidance == 1:
            return velocity
        away, towards = velocity.chunk(2)
        return away + self.guidance * (towards - away)


@dataclass(frozen=True)
class Asked:
    """The text of a call: see `FreqFormerPipeline.__call__`."""

    prompt: Any
    negative_prompt: Any
    embeds: GivenText
    negative: GivenText
    guidance_scale: Any
    most_tokens: Any

    def check(self, batch_size: int, text_channels: int | None) -> int:
        """The number of videos: that of prompts, where there are several.

        Args:
            batch_size: that was asked for.
            text_channels: of the transformer; None where it takes no text.

        Raises:
            ValueError: for text that does not fit, naming the argument.
        """
        self.embeds.check()
        self.negative.check()
        check_whole("max_sequence_length", self.most_tokens, 1, most=MOST_TOKENS)
        if self.guidance_scale is not None:
            check_number("guidance_scale", self.guidance_scale, 0, MOST_GUIDANCE)
        if not isinstance(self.negative_prompt, str):
            raise ValueError(f"negative_prompt is {shown(self.negative_prompt)}; text is allowed")
        if self.prompt is None:
            if text_channels is not None and self.embeds.embeds is None:
                raise ValueError(
                    "prompt is None and the model was trained with text; give prompt, '' for none,"
                    " or prompt_embeds"
                )
            return batch_size
        several = isinstance(self.prompt, list) and bool(self.prompt)
        if not isinstance(self.prompt, str) and not (
            several and all(isinstance(one, str) for one in self.prompt)
        ):
            raise ValueError(f"prompt is {shown(self.prompt)}; text, or a list of it, is allowed")
        if text_channels is None:
            raise ValueError(
                f"prompt is {shown(self.prompt)} and the model was trained without text; None is"
                " allowed"
            )
        if self.embeds.embeds is not None:
            raise ValueError("prompt and prompt_embeds are both given; one of them is allowed")
        if several and batch_size not in (1, len(self.prompt)):
            raise ValueError(
                f"batch_size is {batch_size} and prompt has {len(self.prompt)} texts; the same"
                " number is allowed, or one text for all"
            )
        return len(self.prompt) if several else batch_size

    def conditions(self, batch_size: int, encoder: Any, tokenizer: Any) -> TextConditions:
        """The embeddings of all videos.

        Args:
            batch_size: videos.
            encoder, tokenizer: of the pipeline, or None.

        Raises:
            ValueError: where there is no encoder and one is needed.
        """
        guidance = self._guidance
        if self.prompt is None:
            if self.embeds.embeds is None or guidance == 1:
                return TextConditions(self.embeds.embeds, self.embeds.mask, 1.0)
            towards = (self.embeds.embeds, _whole_mask(self.embeds))
        else:
            prompts = [self.prompt] * batch_size if isinstance(self.prompt, str) else self.prompt
            towards = self._encoded(prompts, encoder, tokenizer)
        if guidance == 1:
            return TextConditions(*towards, 1.0)
        if self.negative.embeds is not None:
            away = (self.negative.embeds, _whole_mask(self.negative))
        else:
            away = self._encoded([self.negative_prompt], encoder, tokenizer)
        both = [_expanded(one, batch_size) for one in (away, towards)]
        length = max(embeds.shape[1] for embeds, _ in both)
        grown = [_lengthened(embeds, mask, length) for embeds, mask in both]
        return TextConditions(
            torch.cat([embeds for embeds, _ in grown]),
            torch.cat([mask for _, mask in grown]),
            guidance,
        )

    @property
    def _guidance(self) -> float:
        if self.guidance_scale is not None:
            return float(self.guidance_scale)
        return 1.0 if self.prompt is None else GUIDANCE

    def _encoded(self, texts: list[str], encoder: Any, tokenizer: Any) -> tuple[Tensor, Tensor]:
        if encoder is None:
            raise ValueError(
                "the pipeline has no text_encoder; give it one with its tokenizer, or pass"
                " prompt_embeds, and negative_prompt_embeds for guidance"
            )
        return TextModel(tokenizer, encoder).encode_batch(texts, self.most_tokens)


def check_encoder(encoder: Any, tokenizer: Any, text_channels: int | None) -> None:
    """Refuse a text encoder that does not fit the transformer.

    Args:
        encoder: of transformers, or None.
        tokenizer: of the encoder, or None.
        text_channels: of the transformer; None where it takes no text.

    Raises:
        ValueError: for one without the other, another kind, or other channels.
    """
    if encoder is None and tokenizer is None:
        return
    if encoder is None or tokenizer is None:
        missing = "text_encoder" if encoder is None else "tokenizer"
        raise ValueError(
            f"{missing} is None; text_encoder and tokenizer belong together: pass both"
        )
    kind = type(encoder).__name__
    if kind not in ENCODERS.values():
        allowed = ", ".join(sorted(set(ENCODERS.values())))
        raise ValueError(f"text_encoder is a {kind}; {allowed} are allowed")
    channels = TextModel(tokenizer, encoder).channels
    if channels != text_channels:
        raise ValueError(
            f"text_encoder has {channels} channels and the transformer cross_attention_dim="
            f"{text_channels}; the same number is allowed: take the encoder that the transformer"
            " was trained with"
        )


def _whole_mask(given: GivenText) -> Tensor:
    if given.mask is not None:
        return given.mask.bool()
    return torch.ones(given.embeds.shape[:2], dtype=torch.bool, device=given.embeds.device)


def _expanded(text: tuple[Tensor, Tensor], batch_size: int) -> tuple[Tensor, Tensor]:
    """One text for all videos, or one each."""
    embeds, mask = text
    if len(embeds) == batch_size:
        return embeds, mask
    if len(embeds) != 1:
        raise ValueError(
            f"embeddings of {len(embeds)} texts are given for {batch_size} videos; one text, or one"
            " a video, is allowed"
        )
    return embeds.expand(batch_size, -1, -1), mask.expand(batch_size, -1)


def _lengthened(embeds: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    more = length - embeds.shape[1]
    return (
        torch.nn.functional.pad(embeds, (0, 0, 0, more)),
        torch.nn.functional.pad(mask, (0, more)),
    )

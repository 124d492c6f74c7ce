"""Wan: video tokens alone; queries and keys are normalised before the heads are split."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.grid import Grid
from freqformer.integrations.diffusers.processor import (
    Family,
    Share,
    UsualProcessor,
    VideoTokens,
    layers_in,
)


class WanProcessor(UsualProcessor):
    """The processor of one self-attention layer of Wan."""

    def banded(
        self,
        attn: Any,
        share: Share,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C), tokens in raster order."""
        self.refuse(attention_mask, fused=attn.fused_projections)
        projected = (
            attn.norm_q(attn.to_q(hidden_states)),
            attn.norm_k(attn.to_k(hidden_states)),
            attn.to_v(hidden_states),
        )
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in projected)
        if rotary is not None:
            query, key = _rotated(query, *rotary), _rotated(key, *rotary)
        out = self.attend(share, query, key, value, hidden_states=hidden_states)
        return attn.to_out[1](attn.to_out[0](out))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, N, H, D) with neighbouring channels rotated, as Wan does; cos and sin (1, N, 1, D) hold
    each angle twice."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return (
        torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
        .flatten(-2)
        .type_as(x)
    )


def video_tokens(transformer: Any, given: dict[str, Any]) -> VideoTokens:
    """The grid of latents (B, C, F, H, W) after the model's patches."""
    sides = given["hidden_states"].shape[2:]
    return VideoTokens(
        Grid(
            *(
                side // patch
                for side, patch in zip(sides, transformer.config.patch_size, strict=True)
            )
        )
    )


FAMILY = Family(layers_in("blocks", "attn1"), video_tokens, WanProcessor, ("WanAttnProcessor",))

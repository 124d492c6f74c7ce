"""Wan: video tokens alone; queries and keys are normalised before the heads are split."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.grid import Grid
from freqformer.integrations.diffusers.processor import Family, FrequencyProcessor, block_layers


class WanProcessor(FrequencyProcessor):
    """The processor of one self-attention layer of Wan."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C), tokens in raster order."""
        if self.is_short():
            return self.own(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        self.refuse(attention_mask, fused=attn.fused_projections)
        projected = (attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states)), attn.to_v(hidden_states))
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in projected)
        if rotary_emb is not None:
            query, key = _rotated(query, *rotary_emb), _rotated(key, *rotary_emb)
        return attn.to_out[1](attn.to_out[0](self.attend(query, key, value)))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, N, H, D) with neighbouring channels rotated, as Wan does; cos and sin (1, N, 1, D) hold each angle twice."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).type_as(x)


def _grid(transformer: Any, given: dict[str, Any]) -> Grid:
    sides = given["hidden_states"].shape[2:]
    return Grid(*(side // patch for side, patch in zip(sides, transformer.config.patch_size, strict=True)))


FAMILY = Family(lambda transformer: block_layers(transformer, "blocks", "attn1"), _grid, WanProcessor, "WanAttnProcessor")

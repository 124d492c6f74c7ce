"""MiniMax-H3: one packed sequence of text, keyframes or references, audio and the video, which
comes last; all but the video is exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.integrations.diffusers.packed import last_video
from freqformer.integrations.diffusers.processor import (
    Family,
    FrequencyProcessor,
    Share,
    VideoTokens,
    layers_in,
)


class MiniMaxH3Processor(FrequencyProcessor):
    """The processor of one layer of MiniMax-H3."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """As the layer's own processor."""
        return self.run(attn, (hidden_states, rotary_emb, attention_mask))

    def banded(
        self,
        attn: Any,
        share: Share,
        hidden_states: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C), the packed sequence."""
        self.refuse(attention_mask, fused=attn.fused_projections)
        query, key, value = (
            projection(hidden_states).unflatten(2, (attn.heads, -1))
            for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        query, key = attn.norm_q(query), attn.norm_k(key)
        if rotary is not None:
            query, key = _rotated(query, *rotary), _rotated(key, *rotary)
        out = self.attend(share, query, key, value, hidden_states=hidden_states)
        return attn.to_out[1](attn.to_out[0](out))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, N, H, D) with its first R channels rotated, each of their first half with that of the
    second; cos and sin (N, R) hold each angle twice."""
    cos, sin = (table.to(x.dtype)[:, None] for table in (cos, sin))
    turned, kept = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
    first, second = turned.chunk(2, -1)
    turned = turned * cos + torch.cat([-second, first], -1) * sin
    return torch.cat([turned, kept], -1)


def _video(_transformer: Any, given: dict[str, Any]) -> VideoTokens:
    return last_video(given["position_ids"])


def _timesteps(given: dict[str, Any]) -> Tensor:
    """That of the video, which every sample shares; keyframes and audio have others."""
    last = given["timestep_indices"][-1]
    return torch.as_tensor(given["timestep"])[last].detach().double().cpu().reshape(1)


def _noise_level(timestep: Tensor) -> Tensor:
    return 1 - timestep


FAMILY = Family(
    layers_in("transformer_blocks", "attn"),
    _video,
    MiniMaxH3Processor,
    ("MiniMaxH3AttnProcessor",),
    _timesteps,
    _noise_level,
)

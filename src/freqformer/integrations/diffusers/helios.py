"""Helios: a piece of video behind frames of its past at three resolutions, which are exact; their
keys may be scaled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.integrations.diffusers.calls import Share, VideoTokens
from freqformer.integrations.diffusers.packed import past_tokens
from freqformer.integrations.diffusers.processor import Family, FrequencyProcessor, layers_in
from freqformer.integrations.diffusers.query_key import neighbours, project
from freqformer.integrations.diffusers.ulysses import ulysses_of
from freqformer.integrations.diffusers.wan import video_tokens
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.query_key import prepared

HISTORY = {
    "latents_history_short": (1, 2, 2),
    "latents_history_mid": (2, 4, 4),
    "latents_history_long": (4, 8, 8),
}
"""Arguments of a call, and the box of latents that makes a token of each."""


class HeliosProcessor(FrequencyProcessor):
    """The processor of one self-attention layer of Helios."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        original_context_length: int | None = None,
    ) -> Tensor:
        """As the layer's own processor."""
        given = (hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        return self.run(attn, (*given, original_context_length))

    def banded(
        self,
        attn: Any,
        share: Share,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary: Tensor | None,
        original_context_length: int | None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C): the past, then the video in raster order."""
        self.refuse(attention_mask, fused=attn.fused_projections)
        if ulysses_of(self._parallel_config) is not None:
            raise ValueError(
                "the transformer has a parallel configuration, and a share of the tokens does not "
                "say where the past ends; None is allowed: run it on one GPU"
            )
        tables = None
        if rotary is not None:
            # One table (B, N, 2 D) of cos and sin, for all heads.
            cos, sin = rotary[:, :, None].chunk(2, -1)
            tables = (cos, sin)
        turn = neighbours(tables, hidden_states)
        past = share.video.before
        if not attn.is_amplify_history or not past:
            return self.layer(attn, share, hidden_states, turn, across_heads=True)
        query, key, value, parameters = project(attn, hidden_states, turn, across_heads=True)
        # The scale comes after norm and rotation, so that both are steps here.
        query, key = prepared(query, key, parameters, key.shape[1])
        scale = 1 + torch.sigmoid(attn.history_key_scale) * (attn.max_scale - 1)
        key = torch.cat([key[:, :past] * scale.to(key)[:, None], key[:, past:]], 1)
        ready = (query, key, value, AttentionParameters())
        out = self.attend(share, *ready, hidden_states=hidden_states)
        return attn.to_out[1](attn.to_out[0](out))


def _video(transformer: Any, given: dict[str, Any]) -> VideoTokens:
    grid = video_tokens(transformer, given).grid
    return VideoTokens(grid, before=past_tokens(given, HISTORY))


FAMILY = Family(layers_in("blocks", "attn1"), _video, HeliosProcessor, ("HeliosAttnProcessor",))

"""MiniMax-H3: one packed sequence of text, keyframes or references, audio and the video, which
comes last; all but the video is exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.integrations.diffusers.calls import Share, VideoTokens
from freqformer.integrations.diffusers.packed import last_video
from freqformer.integrations.diffusers.processor import Family, FrequencyProcessor, layers_in
from freqformer.integrations.diffusers.query_key import halves


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
        return self.layer(attn, share, hidden_states, halves(rotary))  # of its first channels


def _video(_transformer: Any, given: dict[str, Any]) -> VideoTokens:
    return last_video(given["position_ids"])


def _timesteps(given: dict[str, Any]) -> Tensor:
    """That of the video, which every sample shares; keyframes and audio have others."""
    timesteps = torch.as_tensor(given["timestep"])
    # By a tensor of indices: one number as an index would be read on the host by itself.
    last = given["timestep_indices"][-1:].to(timesteps.device)
    return timesteps.detach().index_select(0, last).double().cpu()


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

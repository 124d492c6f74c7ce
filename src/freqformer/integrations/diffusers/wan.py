"""Wan: video tokens alone; queries and keys are normalised over all heads' channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freqformer.grid import Grid
from freqformer.integrations.diffusers.calls import Share, VideoTokens
from freqformer.integrations.diffusers.processor import Family, UsualProcessor, layers_in
from freqformer.integrations.diffusers.query_key import neighbours


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
        turn = neighbours(rotary, hidden_states)
        return self.layer(attn, share, hidden_states, turn, across_heads=True)


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

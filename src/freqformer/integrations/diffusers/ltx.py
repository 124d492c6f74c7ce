"""LTX-Video: video tokens alone; queries and keys are normalised over all heads' channels, and
every head has angles of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freqformer.grid import Grid
from freqformer.integrations.diffusers.calls import Share, VideoTokens
from freqformer.integrations.diffusers.packed import last_video
from freqformer.integrations.diffusers.processor import Family, UsualProcessor, layers_in
from freqformer.integrations.diffusers.query_key import of_heads


class LTXProcessor(UsualProcessor):
    """The processor of one self-attention layer of LTX-Video."""

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
        turn = of_heads(rotary, hidden_states, attn.heads)
        return self.layer(attn, share, hidden_states, turn, across_heads=True)


def _video(_transformer: Any, given: dict[str, Any]) -> VideoTokens:
    """The grid of the call, or that which its coordinates end with: `LTXConditionPipeline` passes
    these alone, and puts keyframes before the video."""
    if given.get("num_frames") is None and given.get("video_coords") is not None:
        return last_video(given["video_coords"])
    return VideoTokens(Grid(*call_sides(given)))


def call_sides(given: dict[str, Any]) -> tuple[int, int, int]:
    """Frames, height and width in tokens, from a call's arguments by name.

    Raises:
        ValueError: where the call has none.
    """
    sides: dict[str, Any] = {name: given.get(name) for name in ("num_frames", "height", "width")}
    missing = [name for name, side in sides.items() if side is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} of the transformer's call is None, and frequency attention "
            "needs the token grid: pass num_frames, height and width in tokens"
        )
    return (sides["num_frames"], sides["height"], sides["width"])


FAMILY = Family(
    layers_in("transformer_blocks", "attn1"),
    _video,
    LTXProcessor,
    ("LTXVideoAttnProcessor",),
    text_masks=("encoder_attention_mask",),
)

"""CogVideoX: text and video share projections and norms, and video alone is rotated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freqformer.grid import Grid
from freqformer.integrations.diffusers.calls import Share, VideoTokens
from freqformer.integrations.diffusers.joint import JointProcessor
from freqformer.integrations.diffusers.processor import Family, layers_in
from freqformer.integrations.diffusers.query_key import neighbours


class CogVideoXProcessor(JointProcessor):
    """The processor of one layer of CogVideoX."""

    def banded(
        self,
        attn: Any,
        share: Share,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Video and text, each (B, N, C) -> the same, video tokens in raster order."""
        assert encoder_hidden_states is not None  # the model's own blocks pass text
        self.refuse(attention_mask)
        turn = neighbours(rotary, hidden_states)
        # The model puts text first, frequency attention last: attention itself knows no order.
        video, text = self.attend_in_one_stream(
            share, attn, hidden_states, encoder_hidden_states, turn
        )
        return attn.to_out[1](attn.to_out[0](video)), attn.to_out[1](attn.to_out[0](text))


def _video(transformer: Any, given: dict[str, Any]) -> VideoTokens:
    frames, _, height, width = given["hidden_states"].shape[1:]
    # CogVideoX 1.5 alone joins frames.
    patch, frames_of_patch = transformer.config.patch_size, transformer.config.patch_size_t or 1
    grid = Grid(frames // frames_of_patch, height // patch, width // patch)
    return VideoTokens(grid, behind=given["encoder_hidden_states"].shape[1])


FAMILY = Family(
    layers_in("transformer_blocks", "attn1"),
    _video,
    CogVideoXProcessor,
    ("CogVideoXAttnProcessor2_0",),
)

"""HunyuanVideo: video and text, first as two streams with projections of their own, then as one;
video alone is rotated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freqformer.grid import Grid
from freqformer.integrations.diffusers.joint import JointProcessor, project
from freqformer.integrations.diffusers.processor import (
    Family,
    Share,
    VideoTokens,
    block_layers,
)


class HunyuanVideoProcessor(JointProcessor):
    """The processor of one layer of HunyuanVideo, of either kind."""

    def banded(
        self,
        attn: Any,
        share: Share,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Video and text, each (B, N, C) -> the same, video tokens in raster order; the model's
        mask hides text alone."""
        assert encoder_hidden_states is not None  # the model's own blocks pass text
        self.refuse()
        two_streams = attn.add_q_proj is not None
        own = ((attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
        added = (
            (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
            (attn.norm_added_q, attn.norm_added_k),
        )
        video, text = self.attend_jointly(
            share,
            project(hidden_states, *own, attn.heads, rotary),
            project(encoder_hidden_states, *(added if two_streams else own), attn.heads),
            None
            if attention_mask is None
            else attention_mask[:, 0, 0, share.video.grid.num_tokens :],
            hidden_states=hidden_states,
        )
        # With one stream the block itself projects what comes out.
        return (
            (attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text))
            if two_streams
            else (video, text)
        )


def _layers(transformer: Any) -> list[tuple[str, Any]]:
    return [
        *block_layers(transformer, "transformer_blocks", "attn"),
        *block_layers(transformer, "single_transformer_blocks", "attn"),
    ]


def latent_grid(transformer: Any, given: dict[str, Any]) -> Grid:
    """The grid of latents (B, C, F, H, W) after the model's patches."""
    frames, height, width = given["hidden_states"].shape[2:]
    patch, frames_of_patch = transformer.config.patch_size, transformer.config.patch_size_t
    return Grid(frames // frames_of_patch, height // patch, width // patch)


def _video(transformer: Any, given: dict[str, Any]) -> VideoTokens:
    text = given["encoder_hidden_states"].shape[1]
    return VideoTokens(latent_grid(transformer, given), behind=text)


FAMILY = Family(_layers, _video, HunyuanVideoProcessor, ("HunyuanVideoAttnProcessor2_0",))

"""HunyuanVideo: video and text, first as two streams with projections of their own, then as one;
video alone is rotated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freqformer.grid import Grid
from freqformer.integrations.diffusers.calls import Share, VideoTokens
from freqformer.integrations.diffusers.joint import JointProcessor, project_text
from freqformer.integrations.diffusers.processor import Family, block_layers
from freqformer.integrations.diffusers.query_key import neighbours, project


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
        turn = neighbours(rotary, hidden_states)
        mask = None
        if attention_mask is not None:
            mask = attention_mask[:, 0, 0, share.video.grid.num_tokens :]
        if attn.add_q_proj is None:
            # The block itself projects what comes out.
            return self.attend_in_one_stream(
                share, attn, hidden_states, encoder_hidden_states, turn, mask
            )
        video, text = self.attend_in_two_streams(
            share,
            project(attn, hidden_states, turn, norm_text=False),
            project_text(
                encoder_hidden_states,
                (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
                (attn.norm_added_q, attn.norm_added_k),
                attn.heads,
            ),
            mask,
            hidden_states=hidden_states,
        )
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


def hunyuan_layers(transformer: Any) -> list[tuple[str, Any]]:
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


FAMILY = Family(hunyuan_layers, _video, HunyuanVideoProcessor, ("HunyuanVideoAttnProcessor2_0",))

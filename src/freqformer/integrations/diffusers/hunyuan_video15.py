"""HunyuanVideo 1.5: video and text as two streams; text from two encoders and an image stand in one
sequence, of which the model's mask hides what is padding."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from freqformer.integrations.diffusers.calls import Share, VideoTokens
from freqformer.integrations.diffusers.hunyuan_video import latent_grid
from freqformer.integrations.diffusers.joint import JointProcessor, project_text
from freqformer.integrations.diffusers.processor import Family, layers_in
from freqformer.integrations.diffusers.query_key import neighbours, project


class HunyuanVideo15Processor(JointProcessor):
    """The processor of one layer of HunyuanVideo 1.5."""

    def banded(
        self,
        attn: Any,
        share: Share,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Video and text, each (B, N, C) -> the same, video tokens in raster order.

        The mask is of the text, (B, N of the text). Hidden text sees everything here and nothing in
        the model; nothing sees it in either.
        """
        assert encoder_hidden_states is not None  # the model's own blocks pass text
        self.refuse()
        video, text = self.attend_in_two_streams(
            share,
            project(attn, hidden_states, neighbours(rotary, hidden_states), norm_text=False),
            project_text(
                encoder_hidden_states,
                (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
                (attn.norm_added_q, attn.norm_added_k),
                attn.heads,
            ),
            None if attention_mask is None else attention_mask.bool(),
            hidden_states=hidden_states,
        )
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


def _video(transformer: Any, given: dict[str, Any]) -> VideoTokens:
    """Text of both encoders and the image stand behind the video."""
    parts = ("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds")
    text = sum(given[name].shape[1] for name in parts)
    return VideoTokens(latent_grid(transformer, given), behind=text)


FAMILY = Family(
    layers_in("transformer_blocks", "attn"),
    _video,
    HunyuanVideo15Processor,
    ("HunyuanVideo15AttnProcessor2_0",),
)

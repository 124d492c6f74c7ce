"""FramePack on HunyuanVideo: a window of video behind frames of its past at three resolutions,
which are exact, and before text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from freqformer.integrations.diffusers.calls import Share, VideoTokens
from freqformer.integrations.diffusers.hunyuan_video import hunyuan_layers, latent_grid
from freqformer.integrations.diffusers.joint import JointProcessor, project_text
from freqformer.integrations.diffusers.packed import past_tokens
from freqformer.integrations.diffusers.processor import Family
from freqformer.integrations.diffusers.query_key import neighbours, project
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.query_key import prepared

HISTORY = {
    "latents_clean": (1, 2, 2),
    "latents_history_2x": (2, 4, 4),
    "latents_history_4x": (4, 8, 8),
}
"""Arguments of a call, and the box of latents that makes a token of each."""
_lengths: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By the mask of a prompt, which a pipeline makes once for a video: read on the host once."""


class FramepackProcessor(JointProcessor):
    """The processor of one layer of FramePack, of either kind."""

    def banded(
        self,
        attn: Any,
        share: Share,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Past with video, and text, each (B, N, C) -> the same; the mask hides text alone."""
        assert encoder_hidden_states is not None  # the model's own blocks pass text
        self.refuse()
        text = encoder_hidden_states
        turn = neighbours(rotary, hidden_states)
        projected = project(attn, hidden_states, turn)
        # The past stands behind the video in the operation, where its norm and tables would be
        # the text's: so both are steps here.
        tokens = hidden_states.shape[1]
        query, key = prepared(projected.query, projected.key, projected.parameters, tokens)
        ready = projected._replace(query=query, key=key, parameters=AttentionParameters())
        mask = _text_mask(attention_mask, tokens, share.video.before)
        one_stream = attn.add_q_proj is None
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        norms = (attn.norm_added_q, attn.norm_added_k)
        if one_stream:
            projections = (attn.to_q, attn.to_k, attn.to_v)
            norms = (attn.norm_q, attn.norm_k)
        video, text = self.attend_in_two_streams(
            share,
            ready,
            project_text(text, projections, norms, attn.heads),
            mask,
            hidden_states=hidden_states,
        )
        if one_stream:
            # The block itself projects what comes out.
            return video, text
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


def _text_mask(mask: Tensor | None, tokens: int, past: int) -> Tensor | None:
    """(B, text + past), of exact tokens in the order that the operation has them, from that of all
    tokens (B, 1, 1, N)."""
    if mask is None:
        return None
    text = mask[:, 0, 0, tokens:]
    return torch.cat([text, text.new_ones(len(text), past)], 1)


def _video(transformer: Any, given: dict[str, Any]) -> VideoTokens:
    text = given["image_embeds"].shape[1] + _words(given["encoder_attention_mask"])
    return VideoTokens(
        latent_grid(transformer, given), before=past_tokens(given, HISTORY), behind=text
    )


def _words(mask: Tensor) -> int:
    """Tokens of text that layers are given: of one sample the model cuts off what is padding."""
    if len(mask) > 1:
        return mask.shape[1]
    if mask not in _lengths:
        _lengths[mask] = int(mask.sum())
    return _lengths[mask]


FAMILY = Family(hunyuan_layers, _video, FramepackProcessor, ("HunyuanVideoAttnProcessor2_0",))

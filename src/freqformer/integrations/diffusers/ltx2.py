"""LTX-2: the video's self-attention; audio, and what crosses between video, audio and text, is left
alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.grid import Grid
from freqformer.integrations.diffusers.calls import Share, VideoTokens
from freqformer.integrations.diffusers.ltx import call_sides
from freqformer.integrations.diffusers.processor import Family, FrequencyProcessor, layers_in
from freqformer.integrations.diffusers.query_key import of_heads, project_values
from freqformer.ops.parameters import RotaryEmbedding


class LTX2Processor(FrequencyProcessor):
    """The processor of one self-attention layer of LTX-2's video."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: tuple[Tensor, Tensor] | None = None,
        key_rotary_emb: tuple[Tensor, Tensor] | None = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: bool | Tensor | None = None,
    ) -> Tensor:
        """As the layer's own processor. A layer that guidance perturbs in every sample is its
        own."""
        given = (hidden_states, encoder_hidden_states, attention_mask, query_rotary_emb)
        given = (*given, key_rotary_emb)
        if type(self.own).__name__ == PERTURBED:
            given = (*given, perturbation_mask)
            if all_perturbed is None and perturbation_mask is not None:
                all_perturbed = bool((perturbation_mask == 0).all())
            if all_perturbed is not None and bool(all_perturbed):
                return self.own(attn, *given)
        return self.run(attn, given)

    def banded(
        self,
        attn: Any,
        share: Share,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
        key_rotary: tuple[Tensor, Tensor] | None = None,
        perturbation_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C), tokens in raster order."""
        self.refuse(attention_mask)
        if key_rotary is not None:
            raise ValueError(
                "frequency attention was given key_rotary_emb, which only attention across has; "
                "None is allowed"
            )
        turn = _turn(rotary, hidden_states, attn)
        value = None if perturbation_mask is None else project_values(attn, hidden_states)

        def finish(out: Tensor, place: slice) -> Tensor:
            if value is not None and perturbation_mask is not None:
                out = torch.lerp(value[:, place].flatten(2), out, perturbation_mask.to(out))
            if attn.to_gate_logits is not None:
                gates = 2 * torch.sigmoid(attn.to_gate_logits(hidden_states[:, place]))
                out = (out.unflatten(2, (attn.heads, -1)) * gates[..., None]).flatten(2)
            return attn.to_out[1](attn.to_out[0](out))

        return self.layer(
            attn, share, hidden_states, turn, across_heads=True, value=value, finish=finish
        )


PERTURBED = "LTX2PerturbedAttnProcessor"


def _turn(
    rotary: tuple[Tensor, Tensor] | None, tokens: Tensor, attn: Any
) -> RotaryEmbedding | None:
    """Every head's own angles, of neighbouring channels or, in 2.3, of the two halves of a head:
    then tables are (B, H, N, P)."""
    if rotary is None or attn.rope_type == "interleaved":
        return of_heads(rotary, tokens, attn.heads)
    cos, sin = (table.transpose(1, 2) for table in rotary)
    return RotaryEmbedding(cos, sin, "halved")


def _video(_transformer: Any, given: dict[str, Any]) -> VideoTokens:
    """The grid of the call; keyframes and references that pipelines append are exact."""
    grid = Grid(*call_sides(given))
    return VideoTokens(grid, behind=max(0, given["hidden_states"].shape[1] - grid.num_tokens))


FAMILY = Family(
    layers_in("transformer_blocks", "attn1"),
    _video,
    LTX2Processor,
    ("LTX2AudioVideoAttnProcessor", PERTURBED),
    video_tables=("rope", "cross_attn_rope"),
    text_masks=("encoder_attention_mask", "audio_encoder_attention_mask"),
)

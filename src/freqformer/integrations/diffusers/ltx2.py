"""LTX-2: the video's self-attention; audio, and what crosses between video, audio and text, is left
alone."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx2 import (
    apply_interleaved_rotary_emb,
    apply_split_rotary_emb,
)
from torch import Tensor

from freqformer.grid import Grid
from freqformer.integrations.diffusers.ltx import call_sides
from freqformer.integrations.diffusers.processor import (
    Family,
    FrequencyProcessor,
    Share,
    VideoTokens,
    layers_in,
)

ROTATE = {"interleaved": apply_interleaved_rotary_emb, "split": apply_split_rotary_emb}


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
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        value = attn.to_v(hidden_states)
        if rotary is not None:
            rotate = ROTATE[attn.rope_type]
            query = rotate(query, rotary)
            key = rotate(key, rotary if key_rotary is None else key_rotary)
        tensors = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        out = self.attend(share, *tensors, hidden_states=hidden_states)
        if perturbation_mask is not None:
            out = torch.lerp(value, out, perturbation_mask.to(out))
        if attn.to_gate_logits is not None:
            gates = 2 * torch.sigmoid(attn.to_gate_logits(hidden_states))
            out = (out.unflatten(2, (attn.heads, -1)) * gates[..., None]).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


PERTURBED = "LTX2PerturbedAttnProcessor"


def _video(_transformer: Any, given: dict[str, Any]) -> VideoTokens:
    """The grid of the call; keyframes and references that pipelines append are exact."""
    grid = Grid(*call_sides(given))
    return VideoTokens(grid, behind=max(0, given["hidden_states"].shape[1] - grid.num_tokens))


FAMILY = Family(
    layers_in("transformer_blocks", "attn1"),
    _video,
    LTX2Processor,
    ("LTX2AudioVideoAttnProcessor", PERTURBED),
)

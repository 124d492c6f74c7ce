"""Models whose layers attend to video and text together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from freqformer.integrations.diffusers.calls import Share
from freqformer.integrations.diffusers.processor import UsualProcessor
from freqformer.integrations.diffusers.query_key import Projected, project
from freqformer.integrations.diffusers.ulysses import ulysses_of
from freqformer.ops.parameters import RotaryEmbedding

Tensors = tuple[Tensor, Tensor, Tensor]
"""Query, key and value."""


class JointProcessor(UsualProcessor):
    """The processor of one layer over video and text."""

    def attend_in_two_streams(
        self,
        share: Share,
        video: Projected,
        text: Tensors,
        text_mask: Tensor | None = None,
        *,
        hidden_states: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The video, in raster order, and text, normalised, (B, N, H, D) -> (B, N, C) of each;
        `hidden_states` (B, N, C) are the video's that the layer was given."""
        self._refuse_ranks()
        query, key, value, parameters = video
        text_query, text_key, text_value = text
        num_text_tokens = text_query.shape[1]
        out = self.attend(
            share,
            torch.cat([query, text_query], 1),
            torch.cat([key, text_key], 1),
            torch.cat([value, text_value], 1),
            parameters,
            hidden_states=hidden_states,
            text_mask=text_mask,
        )
        return out[:, :-num_text_tokens], out[:, -num_text_tokens:]

    def attend_in_one_stream(
        self,
        share: Share,
        attn: Any,
        video: Tensor,
        text: Tensor,
        rotary: RotaryEmbedding | None,
        text_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Video, in raster order, and text, (B, N, C) each, which share projections and norms."""
        self._refuse_ranks()
        projected = project(attn, torch.cat([video, text], 1), rotary)
        out = self.attend(share, *projected, hidden_states=video, text_mask=text_mask)
        num_text_tokens = text.shape[1]
        return out[:, :-num_text_tokens], out[:, -num_text_tokens:]

    def _refuse_ranks(self) -> None:
        if ulysses_of(getattr(self, "_parallel_config", None)) is not None:
            raise ValueError(
                "the transformer has a parallel configuration and attends to video and text "
                "together; None is allowed: run it on one GPU"
            )


def project_text(
    tokens: Tensor,
    projections: Sequence[Callable[[Tensor], Tensor]],
    norms: Sequence[Callable[[Tensor], Tensor] | None],
    heads: int,
) -> Tensors:
    """Query, key and value (B, N, H, D) of text (B, N, C) that has weights of its own; queries and
    keys are normalised by head."""
    query, key, value = (projection(tokens).unflatten(2, (heads, -1)) for projection in projections)
    query, key = (
        x if norm is None else norm(x) for x, norm in zip((query, key), norms, strict=True)
    )
    return query, key, value

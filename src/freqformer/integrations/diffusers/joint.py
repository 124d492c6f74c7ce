"""Models whose layers attend to video and text together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from freqformer.integrations.diffusers.processor import Share, UsualProcessor
from freqformer.integrations.diffusers.ulysses import ulysses_of

Tensors = tuple[Tensor, Tensor, Tensor]
"""Query, key and value."""
rotate: Callable[..., Tensor] = apply_rotary_emb  # type: ignore[assignment]  # its annotation names a pair, its code returns one


class JointProcessor(UsualProcessor):
    """The processor of one layer over video and text."""

    def attend_jointly(
        self,
        share: Share,
        video: Tensors,
        text: Tensors,
        text_mask: Tensor | None = None,
        *,
        hidden_states: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """(B, N, H, D) of the video, in raster order, and of the text -> (B, N, C) of each;
        `hidden_states` (B, N, C) are the video's that the layer was given."""
        if ulysses_of(getattr(self, "_parallel_config", None)) is not None:
            raise ValueError(
                "the transformer has a parallel configuration and attends to video and text "
                "together; None is allowed: run it on one GPU"
            )
        tensors = (torch.cat(pair, 1) for pair in zip(video, text, strict=True))
        num_text_tokens = text[0].shape[1]
        out = self.attend(share, *tensors, hidden_states=hidden_states, text_mask=text_mask)
        return out[:, :-num_text_tokens], out[:, -num_text_tokens:]


def project(
    tokens: Tensor,
    projections: Sequence[Callable[[Tensor], Tensor]],
    norms: Sequence[Callable[[Tensor], Tensor] | None],
    heads: int,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> Tensors:
    """Query, key and value (B, N, H, D) of tokens (B, N, C); queries and keys are normalised by
    head, then rotated."""
    query, key, value = (projection(tokens).unflatten(2, (heads, -1)) for projection in projections)
    query, key = (
        x if norm is None else norm(x) for x, norm in zip((query, key), norms, strict=True)
    )
    if rotary is not None:
        query, key = (rotate(x, rotary, sequence_dim=1) for x in (query, key))
    return query, key, value

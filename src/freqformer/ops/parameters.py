"""What an attention layer learns beside its projections."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttentionParameters:
    """Learned inputs of `frequency_attention`.

    With `rotary`, queries and keys arrive normalised but NOT rotated: bands are taken first and the operation rotates
    after them. Without it they arrive rotated, and bands are taken of what arrives.
    """

    summary_queries: Tensor
    """Pooling queries of the mid and high summaries, (heads, 2, head_dim)."""
    summary_offsets: Tensor
    """Added to the bias of the low, mid and high summaries, (heads, 3); 0, -4, -4 at first."""
    gains: Tensor | None = None
    """Gain per head and band for `band_features="gains"`, (heads, 3); None means 1."""
    rotary: tuple[Tensor, Tensor] | None = None
    """cos and sin of the rotary embedding, each (tokens, head_dim / 2) in the order of the call's tokens."""

"""What an attention layer learns beside its projections."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class AttentionParameters:
    """Learned inputs of `frequency_attention`; what is None takes no part.

    The operation takes them in the order norm, bands, rotary embedding: with `query_norm` and
    `key_norm` queries and keys arrive raw, and with `rotary` they arrive NOT rotated. Without them
    they arrive normalised and rotated, and bands are taken of what arrives.
    """

    summary_queries: Tensor | None = None
    """Pooling queries of the mid and high summaries, (heads, 2, head_dim); None leaves these
    summaries out."""
    summary_offsets: Tensor | None = None
    """Added to the bias of the low, mid and high summaries, (heads, 3) or (batch, heads, 3); None
    adds nothing.

    At 0 summaries weigh as much as all the tokens that they stand for, far below they are hardly
    seen.
    """
    gains: Tensor | None = None
    """Gain per head and band for `band_features="band_gains"`, (heads, 3)."""
    rotary: tuple[Tensor, Tensor] | None = None
    """cos and sin of the rotary embedding, each (video tokens, head_dim / 2) in the order of the
    call's tokens."""
    query_norm: Tensor | None = None
    """Weight of the RMS norm over head_dim of every query, text included, (head_dim,)."""
    key_norm: Tensor | None = None
    """The same for keys."""
    norm_eps: float = 1e-6
    """Added to the mean square in both norms."""


LEARNED = ("summary_queries", "summary_offsets", "gains", "query_norm", "key_norm")
"""Fields of `AttentionParameters` in the order in which operations take them, which the rotary
tables follow."""

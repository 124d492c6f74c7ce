"""What the attention launch and its backward take and give, whichever backend launches them.

Nothing here needs Triton. Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head),
N video tokens, X text tokens, M low tokens, T tiles, C cells, D head_dim, W channels of a row of
the buffers (`buffers.buffer_width`), S rows of the key buffer (`buffers.key_layout`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class AttentionBuffers:
    """What the prologue leaves for the attention launch; all contiguous, in the dtype of the call.
    Channels from D on are zero, and so are their gradients: launches compute them like others."""

    query: Tensor
    """(R, N + X + M, W), normalised and rotated, not scaled: video tokens in tile order, text and
    low tokens. A LOW row has no video tokens, and the others have low tokens with a LOW branch
    only; what a row doesn't have is zero as far as blocks of the queries before read on, `PAD`
    places, and anything behind them."""
    key: Tensor
    """(R, S, W), see `KeyLayout`."""
    value: Tensor


@dataclass(frozen=True)
class RowBands:
    """The band of every row, and the order in which rows run. Nothing reads either back to the
    host."""

    allocation: Tensor
    """`Band` of every row, int32 (R,)."""
    order: Tensor
    """Rows by descending `LaunchTables.band_blocks[allocation]`, int32 (R,): the longest lists
    start first."""
    any_low: bool = True
    """Whether a row may be LOW, so far as the host knows."""
    low_branch: bool = False
    """Whether every row has low queries in addition to those of its band."""

    @property
    def lows(self) -> bool:
        """Whether any row may have low queries."""
        return self.any_low or self.low_branch


@dataclass(frozen=True)
class MidLists:
    """The top-k choice of one call for its MID rows; other rows are not read and may hold
    anything."""

    lists: Tensor | None
    """Key tiles, int32 (R, T, k), without duplicates; entries behind a length are not read. None:
    every tile."""
    lengths: Tensor | None
    """int32 (R, T); None: every list has k tiles."""
    bias: Tensor | None
    """log(tokens of the cell that the query tile doesn't see exactly), float32 (R, T, C); None
    without summaries."""


class AttentionOutputs(NamedTuple):
    """What the attention launch gives."""

    out: Tensor
    """(B, N + X, H, D); video tokens of LOW heads are left unwritten for the merge launch."""
    low_out: Tensor
    """(R, M, D), written in rows that have low queries."""
    lse: Tensor
    """float32 (R, N + X + M), natural log-sum-exp of the query at the same place in
    `buffers.query`; -inf where a query sees no key (its output is zero)."""
    rounding_residual: Tensor | None
    """What out and lse are too narrow for and the backward reads, at the places of the queries;
    None unless gradients will be asked for. In 16 bit it is what rounding took from the outputs,
    (R, N + X + M, D): where few keys take nearly all weight, gradients are differences that need
    it. In float32 it is what a weight follows from without the rounding of the log-sum-exp: the
    largest logit in base 2, and 1 over the sum of exp2(logit - largest), (R, N + X + M, 2)."""


@dataclass(frozen=True)
class AttentionGrads:
    """Gradients of `AttentionBuffers`, of the summary offsets and of the own band's gates.

    The buffers are written where a row of its band holds something; other places hold anything.
    """

    query: Tensor
    """(R, N + X + M, W)."""
    key: Tensor
    """(R, S, W)."""
    value: Tensor
    summary_offsets: Tensor | None
    """(B, H, 3) in the dtype of the offsets; None without offsets."""

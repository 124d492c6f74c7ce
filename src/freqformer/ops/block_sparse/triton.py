"""Block-sparse attention of every head of every band in one Triton launch, forward: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text tokens, M low tokens,
T tiles, L longest list, C cells, D head_dim, S rows of the key buffer (`ops.key_layout`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from freqformer.ops.block_sparse.tables import LaunchTables


@dataclass(frozen=True)
class AttentionBuffers:
    """What the prologue leaves for the attention launch; all contiguous, in the dtype of the call."""

    query: Tensor
    """(R, N + X, D), normalised and rotated, not scaled. Rows of MID, HIGH and DENSE heads hold the video tokens in tile
    order; a LOW row holds its M low tokens at its start instead, and what is between them and the text is never
    read into a result. Text tokens are at N."""
    key: Tensor
    """(R, S, D), see `KeyLayout`."""
    value: Tensor


@dataclass(frozen=True)
class RowBands:
    """The band of every row, and the order in which rows run. Nothing reads either back to the host."""

    allocation: Tensor
    """`Band` of every row, int32 (R,)."""
    order: Tensor
    """Rows by descending `LaunchTables.band_blocks[allocation]`, int32 (R,): the longest lists start first."""


@dataclass(frozen=True)
class MidLists:
    """The top-k choice of one call for its MID rows; other rows are not read and may hold anything."""

    lists: Tensor
    """Key tiles, int32 (R, T, k), without duplicates; entries behind a length are not read."""
    lengths: Tensor | None
    """int32 (R, T); None: every list has k tiles."""
    bias: Tensor | None
    """log(tokens of the cell that the query tile doesn't see exactly), float32 (R, T, C); None without summaries."""


def attend(
    buffers: AttentionBuffers,
    rows: RowBands,
    tables: LaunchTables,
    *,
    mid: MidLists | None,
    summary_offsets: Tensor | None,
    text_mask: Tensor | None,
    token_order: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of all rows, one launch (and a small second one that joins the parts of text queries, if there is text).

    Args:
        buffers: queries, keys and values.
        rows: bands of the rows.
        tables: static lists, biases and offsets of the plan on this device, `launch_tables(plan, device)`.
        mid: the top-k choice; None where the plan's MID lists are static (`tables.mid_lists`, or every tile).
        summary_offsets: learned offsets of the low, mid and high summaries, float (H, 3); None is zero.
        text_mask: bool (B, X), True where a text token may be seen; None sees all.
        token_order: order of the video tokens in `out`, `raster` or `tile`.

    Returns:
        out: (B, N + X, H, D); video rows of LOW heads are left unwritten for the merge launch.
        low_out: (R, M, D), written in LOW rows only.
        lse: float32 (R, N + X), natural log-sum-exp of the query at the same place in `buffers.query`; -inf where
            a query sees no key (its output is zero).
    """
    raise NotImplementedError

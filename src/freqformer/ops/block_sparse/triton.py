"""Block-sparse attention of every head of every band in one Triton launch, forward: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text
tokens, M low tokens, T tiles, L longest list, C cells, D head_dim, S rows of the key buffer
(`ops.key_layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from freqformer.buffers import text_parts
from freqformer.ops.block_sparse.tables import LaunchTables
from freqformer.ops.block_sparse.triton_kernel import attention_kernel, join_text_kernel

JOIN_ROWS = 16
"""Text queries that one program joins."""
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class AttentionBuffers:
    """What the prologue leaves for the attention launch; all contiguous, in the dtype of the
    call."""

    query: Tensor
    """(R, N + X, D), normalised and rotated, not scaled. Rows of MID, HIGH and DENSE heads hold the
    video tokens in tile order; a LOW row holds its M low tokens at its start instead, zeros up to
    `PAD`, since blocks of the row before read so far backward, and anything between them and the
    text. Text tokens are at N."""
    key: Tensor
    """(R, S, D), see `KeyLayout`."""
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


@dataclass(frozen=True)
class MidLists:
    """The top-k choice of one call for its MID rows; other rows are not read and may hold
    anything."""

    lists: Tensor
    """Key tiles, int32 (R, T, k), without duplicates; entries behind a length are not read."""
    lengths: Tensor | None
    """int32 (R, T); None: every list has k tiles."""
    bias: Tensor | None
    """log(tokens of the cell that the query tile doesn't see exactly), float32 (R, T, C); None
    without summaries."""


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
    """Attention of all rows, one launch (and a small second one that joins the parts of text
    queries, if there is text).

    Args:
        buffers: queries, keys and values.
        rows: bands of the rows.
        tables: static lists, biases and offsets of the plan on this device, `launch_tables(plan,
            device)`.
        mid: the top-k choice; None where the plan's MID lists are static (`tables.mid_lists`, or
            every tile).
        summary_offsets: learned offsets of the low, mid and high summaries, float (B, H, 3); None
            is zero.
        text_mask: bool (B, X), True where a text token may be seen; None sees all.
        token_order: order of the video tokens in `out`, `raster` or `tile`.

    Returns:
        out: (B, N + X, H, D); video rows of LOW heads are left unwritten for the merge launch.
        low_out: (R, M, D), written in LOW rows only. lse: float32 (R, N + X), natural log-sum-exp
        of the query at the same place in `buffers.query`; -inf where
            a query sees no key (its output is zero).
    """
    out, low_out, lse, _ = _attend(
        buffers, rows, tables, mid, summary_offsets, text_mask, token_order, False
    )
    return out, low_out, lse


def attend_for_backward(
    buffers: AttentionBuffers,
    rows: RowBands,
    tables: LaunchTables,
    *,
    mid: MidLists | None,
    summary_offsets: Tensor | None,
    text_mask: Tensor | None,
    token_order: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`attend` in one launch, whose fourth output the backward reads.

    Returns: out, low_out and lse of `attend`, and `remainder`: what they are too narrow for, at the
        places of the queries.
        In 16 bit that is what rounding took from the outputs, (R, N + X, D): where few keys take
        nearly all weight, gradients are differences that need it. In float32 it is what a weight
        follows from without the rounding of the log-sum-exp: the largest logit in base 2, and 1
        over the sum of exp2(logit - largest), (R, N + X, 2).
    """
    return _attend(buffers, rows, tables, mid, summary_offsets, text_mask, token_order, True)


def _attend(
    buffers: AttentionBuffers,
    rows: RowBands,
    tables: LaunchTables,
    mid: MidLists | None,
    summary_offsets: Tensor | None,
    text_mask: Tensor | None,
    token_order: str,
    backward: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    plan, slots = tables.plan, tables.plan.layout.slots
    if mid is None:
        mid_lists, mid_lengths, mid_bias = tables.mid_lists, tables.mid_lengths, tables.mid_bias
    else:
        mid_lists, mid_lengths, mid_bias = mid.lists, mid.lengths, mid.bias
    return _block_sparse_attention(
        buffers.query,
        buffers.key,
        buffers.value,
        rows.allocation,
        rows.order,
        [
            tables.tile_offsets,
            tables.tile_counts,
            tables.every_tile,
            tables.high_lists,
            tables.low_bias,
        ],
        [mid_lists, mid_lengths, tables.high_bias, mid_bias, summary_offsets],
        text_mask,
        tables.raster if token_order == "raster" else None,
        tables.keys.offsets,
        [
            plan.num_heads,
            plan.num_text_tokens,
            slots,
            slots if tables.uniform else 0,
            int(backward),
        ],
    )


@torch.library.custom_op(
    "freqformer::block_sparse_attention",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor allocation, Tensor order, Tensor[] "
    "static, Tensor?[] given, "
    "Tensor? text_mask, Tensor? raster, int[] segments, int[] sizes) -> (Tensor, Tensor, Tensor, "
    "Tensor)",
)
def _block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allocation: Tensor,
    order: Tensor,
    static: Sequence[Tensor],
    given: Sequence[Tensor | None],
    text_mask: Tensor | None,
    raster: Tensor | None,
    segments: Sequence[int],
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operation behind `attend`.

    `sizes` are heads, text tokens, slots of a tile, tokens of every tile or 0, and `backward`.
    """
    tile_offsets, tile_counts, every_tile, high_lists, low_bias = static
    mid_lists, mid_lengths, high_bias, mid_bias, summary_offsets = given
    heads, num_text, slots, tile_tokens, backward = sizes
    rows, query_rows, head_dim = query.shape
    tiles, num_tokens = every_tile.shape[0], query_rows - num_text
    out, low_out, lse, remainder = _outputs(query, low_bias, heads, backward)
    parts = text_parts(tiles) if num_text and not backward else 1
    part_out = (
        query.new_empty(rows, parts, num_text, head_dim, dtype=torch.float32) if parts > 1 else None
    )
    part_lse = query.new_empty(rows, parts, num_text, dtype=torch.float32) if parts > 1 else None
    launch = _launch(query, slots, rows * key.shape[1])
    text_tasks = -(-num_text // launch.block_q) * parts
    cells = 0 if high_bias is None else high_bias.shape[1]
    arguments = (
        *(
            launch.matrix(query, launch.block_q),
            launch.matrix(key, launch.block_k),
            launch.matrix(value, launch.block_k),
        ),
        *(
            (out, raster, low_out, lse, part_out, part_lse, remainder if backward else None),
            order,
            allocation,
        ),
        *(tile_offsets, tile_counts),
        *(
            (every_tile, high_lists, mid_lists, mid_lengths),
            (low_bias, high_bias, mid_bias, summary_offsets),
            text_mask,
        ),
        *(
            LOG2_E * head_dim**-0.5,
            rows,
            heads,
            tiles,
            num_tokens,
            num_text,
            low_bias.shape[0],
            cells,
        ),
        *(
            high_lists.shape[1],
            *_steps(mid_lists),
            _steps(mid_bias)[1],
            *segments,
            key.shape[1],
            parts,
        ),
    )
    with torch.cuda.device_of(query):
        attention_kernel[(rows * (text_tasks + tiles * -(-slots // launch.block_q)),)](
            *arguments,  # pyright: ignore[reportCallIssue]
            **launch.constants(head_dim, slots, tile_tokens, num_text),
        )
        if parts > 1:
            constants: dict[str, Any] = {"ROWS": JOIN_ROWS, "HEAD_DIM": head_dim}
            join_text_kernel[(rows * -(-num_text // JOIN_ROWS),)](
                part_out, part_lse, out, lse, heads, parts, num_tokens, num_text, **constants
            )
    return out, low_out, lse, remainder


@_block_sparse_attention.register_fake
def _(query, key, value, allocation, order, static, given, text_mask, raster, segments, sizes):
    return _outputs(query, static[-1], sizes[0], sizes[4])


def _outputs(
    query: Tensor, low_bias: Tensor, heads: int, backward: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, query_rows, head_dim = query.shape
    return (
        query.new_empty(rows // heads, query_rows, heads, head_dim),
        query.new_empty(rows, low_bias.shape[0], head_dim),
        query.new_empty(rows, query_rows, dtype=torch.float32),
        query.new_empty(
            rows if backward else 0, query_rows, 2 if query.dtype == torch.float32 else head_dim
        ),
    )


def _steps(per_row: Tensor | None) -> tuple[int, int]:
    """Entries of a list in (R or 1, T, entries), and 1 where every row has its own, 0 where all
    share."""
    return (0, 0) if per_row is None else (per_row.shape[2], int(per_row.shape[0] > 1))


@dataclass(frozen=True)
class _Launch:
    """How the kernel is compiled."""

    block_q: int
    block_k: int
    warps: int
    stages: int
    descriptors: bool
    """Whether blocks are read by tensor descriptors, from Hopper on, or by pointers."""

    def constants(
        self, head_dim: int, slots: int, tile_tokens: int, num_text: int
    ) -> dict[str, Any]:
        """Constants of `attention_kernel`."""
        return {
            "HEAD_DIM": head_dim,
            "BLOCK_Q": self.block_q,
            "BLOCK_K": self.block_k,
            "QUERY_BLOCKS": -(-slots // self.block_q),
            "TILE_BLOCKS": -(-slots // self.block_k),
            "TILE_TOKENS": tile_tokens,
            "SAFE": slots % self.block_k // 8 * 8,
            "TEXT": num_text > 0,
            "DESCRIPTORS": self.descriptors,
            "STAGES": self.stages,
            "num_warps": self.warps,
        }

    def matrix(self, x: Tensor, block: int) -> Tensor | TensorDescriptor:
        """(R, rows, D) as the kernel reads it, in blocks of rows."""
        return (
            TensorDescriptor.from_tensor(x.flatten(0, 1), [block, x.shape[2]])
            if self.descriptors
            else x
        )


def _launch(query: Tensor, slots: int, key_rows: int) -> _Launch:
    """Block sizes and warps by dtype, head_dim and GPU; measured on an H200 (benchmarks/results),
    others by occupancy."""
    head_dim, block_q = query.shape[2], 64 if slots <= 64 else 128
    # A descriptor counts rows in 32 bits.
    descriptors = _has_descriptors(query.device) and key_rows < 2**31
    if query.dtype == torch.float32 or _capability(query.device) < 8:
        # Without matrix units the operands of a product live in registers: small blocks, or they
        # spill.
        return _Launch(32, 64 if head_dim <= 64 else 32, 8, 1, False)
    if head_dim > 128:
        return _Launch(block_q, 64 if descriptors else 32, 8, 2, descriptors)
    return _Launch(block_q, 64, 4 if descriptors else 8, 2, descriptors)


def _has_descriptors(device: torch.device) -> bool:
    """Whether tensor descriptors are read by hardware; the interpreter reads them on any CPU."""
    return _capability(device) >= 9


@lru_cache(maxsize=16)
def _capability(device: torch.device) -> int:
    """Major compute capability; an AMD GPU counts as 8: matrix units, no descriptors. A CPU
    interprets everything."""
    if device.type == "cpu":
        return 9
    if device.type != "cuda" or torch.version.cuda is None:
        return 8
    return torch.cuda.get_device_capability(device)[0]

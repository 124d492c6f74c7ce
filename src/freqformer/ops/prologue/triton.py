"""The prologue in two Triton launches, for rows of every band at once: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text
tokens, M low tokens, T tiles, D head_dim, S rows of the key buffer (`ops.key_layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.buffers import PAD, power_of_two
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.prologue.tables import PrologueTables
from freqformer.ops.prologue.triton_finish import finish_rows
from freqformer.ops.prologue.triton_prepare import prepare_tiles
from freqformer.ops.tokens import TokenOrder

FEATURES = ("full", "high_pass_values", "band_gains", "own_band")
CHUNK = 16
"""Tokens that one program holds at once: few, so that many programs have loads in flight."""
TEXT_SLOTS = 32
"""Text tokens of one program."""
CELL_STEP = 8
"""Tiles of a cell that are added at once."""


@dataclass(frozen=True, eq=False)
class PreparedRows:
    """What the prologue leaves for the launches behind it."""

    query: Tensor
    """(R, N + X + M, D): video tokens in tile order, unless the row is LOW, then text, then low
    tokens of LOW rows, and of all with a LOW branch. So far as blocks of the queries before read
    on, what holds none is zero."""
    key: Tensor
    """(R, S, D), see `KeyLayout`."""
    value: Tensor
    sums: Tensor
    """float32 (3, R, T, D): sums over tiles of rotated queries, of rotated keys and of values with
    all bands; written in MID and HIGH rows, which alone need them. T is 0 where none does."""
    bands: Tensor
    """`Band` of every row, int32 (R,)."""
    order: Tensor
    """Rows by descending key blocks, int32 (R,)."""
    pool_lse: Tensor
    """Log-sum-exp of the pooling scores of every cell in the mid and high band, float32 (R, C, 2),
    which the backward reads; C is 0 without learned summaries, and rows hold anything for their own
    band."""


def prepare_rows(
    tensors: tuple[Tensor, Tensor, Tensor],
    allocation: Tensor,
    tables: PrologueTables,
    band_blocks: Tensor,
    *,
    parameters: AttentionParameters | None,
    token_order: TokenOrder,
    text_mask: Tensor | None = None,
    low_branch: bool = False,
) -> PreparedRows:
    """Norm, band features, rotary embedding, tile order, low tokens, summaries, text and tile sums
    of all rows.

    Args:
        tensors: query, key and value (B, N + X, H, D), whose last stride is 1.
        allocation: the band of every head, whole numbers (B, H) on the device, any strides. It
            isn't checked, since that would wait for the device: a row with another number is
            prepared as DENSE.
        tables: `prologue_tables` of the plan on this device.
        band_blocks: key blocks by `Band`, int32 (4,): what rows are ordered by.
        parameters: learned inputs, or None.
        token_order: order of the video tokens and of the rotary tables.
        text_mask: bool (B, X), False for text tokens that nothing may reach from; None for none.
        low_branch: whether every row has low tokens, for the LOW branch of its head.
    """
    plan, keys = tables.plan, tables.keys
    learned = parameters or AttentionParameters()
    cos, sin = (None, None) if learned.rotary is None else learned.rotary
    optional = (
        learned.query_norm,
        learned.key_norm,
        cos,
        sin,
        learned.gains,
        learned.summary_queries,
    )
    outputs = _prologue(
        *tensors,
        allocation,
        [tables.tile_offsets, tables.raster, tables.tile_class, tables.low_place],
        [tables.reduction, tables.projectors],
        [tables.cell_tiles, tables.cell_counts, tables.zeros, band_blocks],
        [None if x is None else x.contiguous() for x in optional],
        learned.norm_eps,
        [*keys.offsets, keys.rows, plan.num_low_tokens, int(low_branch)],
        plan.num_text_tokens,
        token_order == "raster",
        FEATURES.index(plan.config.band_features),
        tables.sums,
        None if text_mask is None else text_mask.contiguous(),
    )
    return PreparedRows(*outputs)


def _prologue(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allocation: Tensor,
    layout: Sequence[Tensor],
    matrices: Sequence[Tensor | None],
    cells: Sequence[Tensor],
    learned: Sequence[Tensor | None],
    eps: float,
    segments: Sequence[int],
    num_text: int,
    raster: bool,
    features: int,
    sums: bool,
    text_mask: Tensor | None,
) -> tuple[Tensor, ...]:
    outputs = _outputs(query, layout, cells, learned, segments, sums)
    buffers, tile_sums, bands, order = (
        outputs[:3],
        outputs[3] if sums else None,
        outputs[4],
        outputs[5],
    )
    _, tokens, heads, head_dim = query.shape
    rows, tiles = order.shape[0], layout[0].shape[0] - 1
    query_norm, key_norm, cos, sin, gains, pooling = learned
    inputs, strides = (query, key, value), tuple(x.stride()[:3] for x in (query, key, value))
    reduction, projectors = matrices
    assert reduction is not None
    parts, _, low_slots, slots = reduction.shape
    branch = bool(segments[8])
    query_rows = tokens + segments[7]
    rotary = None if cos is None else (cos, sin)
    projector_step = 0 if projectors is None else projectors.stride(0)
    full = FEATURES[features] == "full"
    prepare_tiles[(rows * tiles,)](
        inputs,
        strides,
        allocation,
        allocation.stride(),
        buffers,
        tile_sums,
        tuple(layout),
        (reduction, reduction.stride(0), projectors, projector_step),
        (query_norm, key_norm, rotary, gains),
        (heads, rows, tokens, query_rows, segments[6], tiles),
        (segments[0], segments[5]),
        eps,
        SLOTS=slots,
        CHUNK=min(slots, CHUNK) if full else slots,
        LOW_SLOTS=low_slots,
        D=head_dim,
        RASTER=raster,
        FEATURES=features,
        TEXT=num_text > 0,
        BRANCH=branch,
        PARTS=parts,
        num_warps=4 if full else 8,  # pyright: ignore[reportCallIssue]
        num_stages=3 if full else 1,  # pyright: ignore[reportCallIssue]
    )
    jobs = (cells[0].shape[0], -(-num_text // TEXT_SLOTS), cells[2].shape[0])
    finish_rows[(rows * (sum(jobs) + 1),)](
        inputs,
        strides,
        allocation,
        allocation.stride(),
        buffers,
        tile_sums,
        outputs[6],
        tuple(layout[:3]),
        (cells[0], cells[1], cells[0].shape[1]),
        projectors,
        projector_step,
        (query_norm, key_norm, rotary, pooling),
        (order, bands, cells[3]),
        cells[2],
        text_mask,
        (heads, rows, tokens, query_rows, segments[6], tiles, tokens - num_text, segments[7]),
        tuple(segments[1:5]),
        jobs,
        eps,
        SLOTS=slots,
        D=head_dim,
        RASTER=raster,
        PARTS=parts,
        STEP=CELL_STEP,
        TEXT_SLOTS=TEXT_SLOTS,
        PAD=PAD,
        ROWS=power_of_two(rows),
        BRANCH=branch,
        num_warps=4 if pooling is None else 8,  # pyright: ignore[reportCallIssue]
        num_stages=1,  # pyright: ignore[reportCallIssue]
    )
    return outputs


def _outputs(
    query: Tensor,
    layout: Sequence[Tensor],
    cells: Sequence[Tensor],
    learned: Sequence[Tensor | None],
    segments: Sequence[int],
    sums: bool,
) -> tuple[Tensor, ...]:
    batch, tokens, heads, head_dim = query.shape
    rows, tiles = batch * heads, layout[0].shape[0] - 1 if sums else 0
    return (
        query.new_empty(rows, tokens + segments[7], head_dim),
        query.new_empty(rows, segments[6], head_dim),
        query.new_empty(rows, segments[6], head_dim),
        query.new_empty(3, rows, tiles, head_dim, dtype=torch.float32),
        query.new_empty(rows, dtype=torch.int32),
        query.new_empty(rows, dtype=torch.int32),
        query.new_empty(
            rows, 0 if learned[5] is None else cells[0].shape[0], 2, dtype=torch.float32
        ),
    )

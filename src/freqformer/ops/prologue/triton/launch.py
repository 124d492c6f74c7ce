"""The prologue in two Triton launches, and a third where summaries are learned: the host side.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video tokens, X text
tokens, M low tokens, T tiles, C cells, D head_dim, W channels of a row of the buffers
(`buffers.buffer_width`), S rows of the key buffer (`buffers.key_layout`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.buffers import PAD, buffer_width, power_of_two
from freqformer.ops.architectures import architecture
from freqformer.ops.jit import constant
from freqformer.ops.parameters import AttentionParameters, RotaryEmbedding
from freqformer.ops.prologue.tables import PrologueTables
from freqformer.ops.prologue.triton.arguments import (
    Allocation,
    Blocks,
    Common,
    Learned,
    PreparedRows,
    Qkv,
    RotaryTables,
    Segments,
    Sizes,
    Tiles,
    Tokens,
)
from freqformer.ops.prologue.triton.channels import half_of, paired
from freqformer.ops.prologue.triton.launch_pooling import pool_chunk, pool_rows
from freqformer.ops.prologue.triton.norm_launch import find_scales, normed_across, with_scales
from freqformer.ops.prologue.triton.pooling_kernel import Pools
from freqformer.ops.prologue.triton.summary_kernel import Jobs, RowBlocks, finish_rows
from freqformer.ops.prologue.triton.tile_kernel import prepare_tiles
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import AttentionPlan

CHUNK = 16
"""Tokens that one program holds at once: few, so that many programs have loads in flight."""
BAND_CHUNK = 32
"""The same with band features: every chunk reads its tile once more."""
TEXT_SLOTS = 32
"""Text tokens of one program."""
CELL_STEP = 8
"""Tiles of a cell that are added at once."""


def prepare_rows(
    qkv: tuple[Tensor, Tensor, Tensor],
    allocation: Tensor,
    tables: PrologueTables,
    band_blocks: Tensor,
    *,
    parameters: AttentionParameters | None,
    token_order: TokenOrder,
    text_mask: Tensor | None = None,
    low_branch: bool = False,
    scales: Tensor | None = None,
) -> PreparedRows:
    """Norm, band features, rotary embedding, tile order, low tokens, summaries, text and tile sums
    of all rows.

    Args:
        qkv: query, key and value (B, N + X, H, D), whose last stride is 1.
        allocation: the band of every head, integers (B, H) on the device, any strides. It isn't
            checked, since that would wait for the device: a row with another number is prepared as
            DENSE.
        tables: `prologue_tables` of the plan on this device.
        band_blocks: key blocks by `Band`, int32 (4,): what rows are ordered by.
        parameters: learned inputs, or None.
        token_order: order of the video tokens and of the rotary tables.
        text_mask: bool (B, X), False for text tokens that nothing may reach from; None for none.
        low_branch: whether every row has low tokens, for the LOW branch of its head.
        scales: of `token_scales_of`, where a norm is over more heads than these; None finds them.
    """
    query, _, _ = qkv
    _, _, _, head_dim = query.shape
    given = parameters or AttentionParameters()
    text_mask = _contiguous(text_mask)
    common = common_arguments(qkv, given, tables, token_order)
    if scales is None and normed_across(given):
        scales = find_scales(common, query, text_mask)
    common = with_scales(common, scales)
    sample_stride, head_stride = allocation.stride()
    bands = Allocation(bands=allocation, sample=sample_stride, head=head_stride)
    rows = _empty_rows(query, common, tables)._replace(scales=scales)
    jobs = Jobs(
        cell_tiles=tables.cell_tiles,
        cell_counts=tables.cell_counts,
        longest=tables.cell_tiles.shape[1],
        text_mask=text_mask,
        text=-(-common.num_text // TEXT_SLOTS),
        zero_rows=tables.zeros,
        zeros=tables.zeros.shape[0],
        band_blocks=band_blocks,
    )
    chunk = CHUNK if common.qkv.value.FEATURES.value == "full" else BAND_CHUNK
    _prepare_tiles(common, bands, rows, tile_blocks(tables, head_dim, chunk, low_branch))
    pools = None
    if common.learned.pooling is not None and common.sizes.cells:
        chunk = pool_chunk(query)
        pools = pool_rows(common, bands, tile_blocks(tables, head_dim, chunk, low_branch))
    row_blocks = _row_blocks(common, tables, head_dim, low_branch, pools)
    _finish_rows(common, bands, rows, pools, jobs, row_blocks)
    return rows


def token_scales_of(
    qkv: tuple[Tensor, Tensor, Tensor],
    parameters: AttentionParameters,
    tables: PrologueTables,
    token_order: TokenOrder,
    text_mask: Tensor | None,
) -> Tensor | None:
    """What a norm across these heads multiplies queries and keys by, float32 (2, B, N + X); None
    without one. Arguments are those of `prepare_rows`."""
    if not normed_across(parameters):
        return None
    query, _, _ = qkv
    common = common_arguments(qkv, parameters, tables, token_order)
    return find_scales(common, query, _contiguous(text_mask))


def _prepare_tiles(
    common: Common, allocation: Allocation, rows: PreparedRows, blocks: Blocks
) -> None:
    full = common.qkv.value.FEATURES.value == "full"
    warps = 4 if full else architecture(rows.query.device).warps(256)
    prepare_tiles[(common.sizes.rows * common.sizes.tiles,)](
        common.qkv,
        allocation,
        rows,
        common.tiles,
        common.learned,
        common.sizes,
        blocks,
        num_warps=warps,  # pyright: ignore[reportCallIssue]
        num_stages=3 if full else 1,  # pyright: ignore[reportCallIssue]
    )


def _finish_rows(
    common: Common,
    allocation: Allocation,
    rows: PreparedRows,
    pools: Pools | None,
    jobs: Jobs,
    blocks: RowBlocks,
) -> None:
    # One more program of a row finds its place in the order.
    programs = common.sizes.cells + jobs.text + jobs.zeros + 1
    finish_rows[(common.sizes.rows * programs,)](
        common.qkv,
        allocation,
        rows,
        pools,
        common.learned,
        common.sizes,
        jobs,
        blocks,
        num_warps=4,  # pyright: ignore[reportCallIssue]
        num_stages=1,  # pyright: ignore[reportCallIssue]
    )


def _empty_rows(query: Tensor, common: Common, tables: PrologueTables) -> PreparedRows:
    _, _, _, head_dim = query.shape
    width = buffer_width(head_dim)
    sizes = common.sizes
    tiles = sizes.tiles if tables.sums else 0
    pooled = 0 if common.learned.pooling is None else sizes.cells
    return PreparedRows(
        query=query.new_empty(sizes.rows, sizes.query_rows, width),
        key=query.new_empty(sizes.rows, sizes.key_rows, width),
        value=query.new_empty(sizes.rows, sizes.key_rows, width),
        sums=query.new_empty(3, sizes.rows, tiles, width, dtype=torch.float32),
        bands=query.new_empty(sizes.rows, dtype=torch.int32),
        order=query.new_empty(sizes.rows, dtype=torch.int32),
        pool_lse=query.new_empty(sizes.rows, pooled, 2, dtype=torch.float32),
        scales=None,
    )


def common_arguments(
    qkv: tuple[Tensor, Tensor, Tensor],
    given: AttentionParameters,
    tables: PrologueTables,
    token_order: TokenOrder,
) -> Common:
    """What all kernels take, from what the call brought."""
    query, _, _ = qkv
    batch, tokens, heads, _ = query.shape
    plan = tables.plan
    low, low_summaries, mid_summaries, high_summaries, text, exact = tables.keys.offsets
    pooling = given.summary_queries
    if pooling is not None:
        # Pooling queries meet keys, whose channels kernels may hold in another order.
        pooling = paired(pooling, half_of(given)).contiguous()
    video = tokens - plan.num_text_tokens
    rotation = given.rotation
    return Common(
        qkv=_qkv(qkv, given, plan),
        tiles=_tiles(tables, token_order),
        learned=Learned(
            rotary=None if rotation is None else _rotary(rotation, video),
            gains=_contiguous(given.gains),
            pooling=pooling,
            eps=given.norm_eps,
            TURNS=constant(rotation is not None),
        ),
        sizes=Sizes(
            heads=heads,
            rows=batch * heads,
            tokens=tokens,
            video=video,
            low=plan.num_low_tokens,
            query_rows=tokens + plan.num_low_tokens,
            key_rows=tables.keys.rows,
            tiles=tables.tile_class.shape[0],
            cells=tables.cell_counts.shape[0],
            segments=Segments(
                low=low,
                low_summaries=low_summaries,
                mid_summaries=mid_summaries,
                high_summaries=high_summaries,
                text=text,
                exact=exact,
            ),
        ),
    )


def _rotary(rotation: RotaryEmbedding, num_video_tokens: int) -> RotaryTables:
    cos, sin = rotation.cos, rotation.sin
    if cos.stride() != sin.stride():
        cos = cos.contiguous()
        sin = sin.contiguous()
    samples, tokens, heads, pairs = cos.shape
    sample, token, head, pair = cos.stride()
    return RotaryTables(
        cos=cos,
        sin=sin,
        sample=sample if samples > 1 else 0,
        token=token,
        head=head if heads > 1 else 0,
        pair=pair,
        PAIRS=constant(pairs),
        PLAIN=constant(
            samples == heads == 1 and (token, pair) == (pairs, 1) and cos.numel() < 2**31
        ),
        TURNS_TEXT=constant(tokens > num_video_tokens),
    )


def _qkv(
    qkv: tuple[Tensor, Tensor, Tensor], given: AttentionParameters, plan: AttentionPlan
) -> Qkv:
    features = plan.config.band_features
    matched = "full" if features == "high_pass_values" else features
    text = plan.num_text_tokens > 0

    def tokens(
        x: Tensor, norm: Tensor | None, features: str, *, keeps: bool, rotated: bool
    ) -> Tokens:
        sample, token, head, _ = x.stride()
        return Tokens(
            base=x,
            sample=sample,
            token=token,
            head=head,
            norm=_contiguous(norm),
            norm_head=x.shape[-1] if given.norm_across_heads else 0,
            scales=None,
            FEATURES=constant(features),
            KEEPS_EXACT=constant(keeps),
            ROTATED=constant(rotated),
            HALF=constant(half_of(given) if rotated else 0),
            NORMS_TEXT=constant(norm is not None and given.norm_text),
        )

    query, key, value = qkv
    return Qkv(
        # Text queries see exact keys and values of LOW rows, whose exact queries nobody reads.
        query=tokens(query, given.query_norm, matched, keeps=False, rotated=True),
        key=tokens(key, given.key_norm, matched, keeps=text, rotated=True),
        value=tokens(value, None, features, keeps=text, rotated=False),
    )


def _tiles(tables: PrologueTables, token_order: TokenOrder) -> Tiles:
    projectors = tables.projectors
    return Tiles(
        offsets=tables.tile_offsets,
        raster=tables.raster if token_order == "raster" else None,
        kind=tables.tile_class,
        low_place=tables.low_place,
        reduction=tables.reduction,
        reduction_step=tables.reduction.stride(0),
        projectors=projectors,
        projector_step=0 if projectors is None else projectors.stride(0),
    )


def tile_blocks(tables: PrologueTables, head_dim: int, chunk: int, low_branch: bool) -> Blocks:
    """What kernels over tiles know at compile time, with `chunk` tokens at once."""
    parts, _, low_slots, slots = tables.reduction.shape
    return Blocks(
        SLOTS=constant(slots),
        CHUNK=constant(min(slots, chunk)),
        LOW_SLOTS=constant(low_slots),
        D=constant(head_dim),
        W=constant(buffer_width(head_dim)),
        PARTS=constant(parts),
        BRANCH=constant(low_branch),
        SUMS=constant(tables.sums),
    )


def _row_blocks(
    common: Common, tables: PrologueTables, head_dim: int, low_branch: bool, pools: Pools | None
) -> RowBlocks:
    return RowBlocks(
        D=constant(head_dim),
        W=constant(buffer_width(head_dim)),
        STEP=constant(CELL_STEP),
        TEXT_SLOTS=constant(TEXT_SLOTS),
        PAD=constant(PAD),
        ROWS=constant(power_of_two(common.sizes.rows)),
        BRANCH=constant(low_branch),
        SUMS=constant(tables.sums),
        POOLS=constant(pools is not None),
    )


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()

"""The Triton kernel of block-sparse attention, backward: gradients of exact keys and values.

The mathematics is in `bwd_dq`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.block_sparse.triton.blocks import (
    HIGH,
    LOG2_E,
    LOW,
    MID,
    UNSPECIALIZED,
    Listed,
    load_block,
    row_of,
    store_rows,
    tile_extent,
    tile_skip,
)
from freqformer.ops.block_sparse.triton.bwd_gather import Statistics, load_statistics
from freqformer.ops.block_sparse.triton.softmax import add_product, exp2, product, scaled


class ListingTiles(NamedTuple):
    """Query tiles that list each key tile, see `TransposedLists`."""

    every: Tensor
    """0 to T - 1, int32 (T,)."""
    high_starts: Tensor
    high_queries: Tensor
    mid_starts: Tensor | None
    """None where MID rows list every tile."""
    mid_queries: Tensor | None
    mid_step: int
    """1 where every row has lists of its own, 0 where all share."""


class KeyGrads(NamedTuple):
    """Gradients of keys and values: of the buffers (R, S, W), or a block (K, W) of them."""

    key: Any
    value: Any


class KeyStep(NamedTuple):
    """What one block of queries makes of the gradients of a block of keys."""

    sums: KeyGrads
    ds: Any
    """Gradients of the logits, (K, Q)."""


@triton.jit
def key_step(
    k,
    v,
    query,
    grad,
    start,
    limit,
    statistics,
    bias,
    scale,
    sums,
    blocks,
):
    """The `KeyStep` of one block of queries.

    Args:
        k, v: a block of keys and values.
        query, grad, start, limit: queries and output gradients, `Matrix`; where the block starts,
            and where to read zeros from.
        statistics: of `load_statistics`.
        bias: of the keys, None for none.
        sums: gradients so far, `KeyGrads`.
    """
    q = load_block(query.source, query.at + start, limit, blocks.BLOCK_Q, blocks)
    g = load_block(grad.source, grad.at + start, limit, blocks.BLOCK_Q, blocks)
    # Keys are rows here: both sums run over queries, and so over columns. Weights are the left
    # factor of dv as they stand, and ds that of dk: neither is transposed.
    logits = product(k, q)
    if q.dtype == tl.float32:
        added = tl.zeros([1, 1], tl.float32) if bias is None else bias[:, None]
        logits = scaled(logits, scale, added) - statistics.lse[None, :]
        weight = exp2(logits, True) * statistics.rounding_residual[None, :]
    else:
        # As for queries, the bias is added to a small difference.
        logits = logits * scale - statistics.lse[None, :]
        if bias is not None:
            logits += bias[:, None]
        # Queries are summed over here, so those after a tile's end must have weight 0: their
        # log-sum-exp is +inf. Keys after its end don't mix with others, and are not written.
        weight = tl.exp2(logits)
    dv = add_product(sums.value, weight, g)
    # In float32 v . grad and delta are sums of float64: near a weight of 1 they cancel.
    ds = weight * (product(v, g) - statistics.delta[None, :])
    dk = add_product(sums.key, ds, q)
    return KeyStep(sums=KeyGrads(key=dk, value=dv), ds=ds)


class KeyTask(NamedTuple):
    """A block of exact keys of one row."""

    row: Any
    start: Any
    """Row of the first key in the key buffer of the row."""
    count: Any
    """Keys from there on to the end of their tile; below 1 where there is nothing to do."""
    listing: Listed
    """The query tiles that see them."""
    text: Any
    """Text queries that see them."""
    some: Any
    """Whether the keys' gradients are asked for."""


@triton.jit
def _listing_tiles(band, row, tile, num_tiles, lists):
    """The query tiles that list a key tile of a row of `band`: `Listed`."""
    # DENSE rows, and MID rows without lists: every query tile sees every key tile.
    listed = lists.every
    length = num_tiles
    if band == HIGH:
        # The lists are of different lengths, one after another: two starts say where each ends.
        # Starts count entries of all rows in 64 bits; one length fits the loop's 32.
        begin = tl.load(lists.high_starts + tile)
        listed = lists.high_queries + begin
        length = (tl.load(lists.high_starts + tile + 1) - begin).to(tl.int32)
    if lists.mid_starts is not None:
        if band == MID:
            # Key tiles of all rows are one sequence: an entry ends where the next one starts.
            entry = row.to(tl.int64) * lists.mid_step * num_tiles + tile
            begin = tl.load(lists.mid_starts + entry)
            listed = lists.mid_queries + begin
            length = (tl.load(lists.mid_starts + entry + 1) - begin).to(tl.int32)
    if band == LOW:
        length = 0
    return Listed(tiles=listed, length=length)


@triton.jit
def key_task_of(program, rows, tiles, lists, num_rows, num_tiles, num_text, exact_at, blocks):
    """The `KeyTask` of a program: blocks of the video segment, then as many of the exact segment,
    if there is one, which text queries alone see.

    Args:
        rows: `Rows`, whose order is of row * T + tile here.
        tiles, lists: `Tiles`, `ListingTiles`.
        exact_at: first row of the exact segment, below 1 where there is none.
    """
    per_segment = num_rows * num_tiles * blocks.KEY_BLOCKS
    is_exact = program >= per_segment
    task = program % per_segment
    # Key tiles listed most often start first, over all rows: short programs fill the gaps at the
    # end. Blocks of one tile are neighbours, and read the same queries.
    place = tl.load(rows.order + task // blocks.KEY_BLOCKS)
    row = place // num_tiles
    tile = place % num_tiles
    band = tl.load(rows.allocation + row)
    skip = task % blocks.KEY_BLOCKS * blocks.BLOCK_K
    extent = tile_extent(tiles, tile, blocks.TILE_TOKENS)
    start = extent.start + skip
    count = extent.count - skip
    exact = _listing_tiles(band, row, tile, num_tiles, lists)
    length = exact.length
    banded = (band == MID) | (band == HIGH)
    text_count = num_text
    if is_exact:
        start += exact_at
        length = 0
    if exact_at > 0:
        # Text queries see one of the two segments: the exact one in rows whose video keys are
        # filtered.
        if banded != is_exact:
            text_count = 0
    # Keys of LOW rows and of the exact segment serve text queries alone: without those, nothing was
    # there to read.
    unread = (is_exact | (band == LOW)) & (text_count == 0)
    return KeyTask(
        row=row,
        start=start,
        count=count,
        listing=Listed(tiles=exact.tiles, length=length),
        text=text_count,
        some=(count > 0) & (not unread),
    )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def video_grads_kernel(
    query,
    key,
    value,
    grad,
    statistics,
    grads,
    rows,
    tiles,
    lists,
    scale,
    blocks,
    num_rows,
    num_tiles,
    num_tokens,
    num_text,
    num_low,
    exact_at,
    key_rows,
):
    """Gradients of one block of exact video keys and values of one row, over the query tiles that
    list their tile.

    Args:
        query, key, value, grad, statistics: as in `query_grads_kernel`.
        grads: `KeyGrads`, written.
        rows: `Rows`, whose order is of row * T + tile here, (R * T,).
        tiles, lists: `Tiles`, `ListingTiles`.
        scale, blocks, exact_at, key_rows: as in `attention_kernel`.
    """
    task = key_task_of(
        tl.program_id(0), rows, tiles, lists, num_rows, num_tiles, num_text, exact_at, blocks
    )
    if not task.some:
        return
    row = task.row
    start = task.start
    listed = task.listing.tiles

    query_rows = num_tokens + num_text + num_low
    # Pointers are moved to the row once, in 64 bits, so that the loop adds 32. Rows start at
    # multiples of 16: neighbours are loaded together.
    statistic = row.to(tl.int64) * tl.multiple_of(statistics.rows, 16)
    residual = statistics.rounding_residual
    if residual is not None:
        residual += statistic
    own_statistics = Statistics(
        lse=statistics.lse + statistic,
        delta=statistics.delta + statistic,
        rounding_residual=residual,
        rows=statistics.rows,
    )
    queries = row_of(query, row, query_rows, blocks)
    grad_rows = row_of(grad, row, query_rows, blocks)
    keys = row_of(key, row, key_rows, blocks)
    values = row_of(value, row, key_rows, blocks)
    # Keys stay while queries pass. The transposed list brings every query that sees them to one
    # program, so that no two programs ever add to one gradient.
    k = load_block(keys.source, keys.at + start, None, blocks.BLOCK_K, blocks)
    v = load_block(values.source, values.at + start, None, blocks.BLOCK_K, blocks)
    sums = KeyGrads(
        key=tl.zeros([blocks.BLOCK_K, blocks.HEAD_DIM], tl.float32),
        value=tl.zeros([blocks.BLOCK_K, blocks.HEAD_DIM], tl.float32),
    )
    column = tl.arange(0, blocks.BLOCK_Q)

    # A step knows where its queries lie, and the next tile is on its way.
    steps = task.listing.length * blocks.QUERY_BLOCKS
    # A key tile may be in no list; tile 0 always has an extent.
    other = tl.load(listed, mask=steps > 0, other=0)
    extent = tile_extent(tiles, other, blocks.TILE_TOKENS)
    other = tl.load(listed + 1 // blocks.QUERY_BLOCKS, mask=steps > 1, other=0)
    for step in tl.range(0, steps, num_stages=blocks.STAGES):
        ahead = tile_skip(step, blocks.QUERY_BLOCKS, blocks.BLOCK_Q)
        at = extent.start + ahead
        left = extent.count - ahead
        extent = tile_extent(tiles, other, blocks.TILE_TOKENS)
        other = tl.load(listed + tl.minimum(step + 2, steps - 1) // blocks.QUERY_BLOCKS)
        # Queries of full tiles are all live: their statistics are loaded without a mask.
        live = None
        if blocks.TILE_TOKENS != blocks.QUERY_BLOCKS * blocks.BLOCK_Q:
            live = column < left
        made = key_step(
            k,
            v,
            queries,
            grad_rows,
            at,
            at + left,
            load_statistics(own_statistics, at + column, live),
            None,
            scale,
            sums,
            blocks,
        )
        sums = made.sums
    if blocks.TEXT:
        # Text is a few blocks: too few to fill a pipeline.
        for step in tl.range(0, tl.cdiv(task.text, blocks.BLOCK_Q), num_stages=1):
            at = num_tokens + step * blocks.BLOCK_Q
            left = num_text - step * blocks.BLOCK_Q
            made = key_step(
                k,
                v,
                queries,
                grad_rows,
                at,
                at + left,
                load_statistics(own_statistics, at + column, column < left),
                None,
                scale,
                sums,
                blocks,
            )
            sums = made.sums

    # What the block holds after its tile's end is the next tile's, and another program's to write.
    # Logits were scaled, so dk is: by 1 / sqrt(D) once, without the log2(e) of base 2.
    own = tl.arange(0, blocks.BLOCK_K)
    target = row.to(tl.int64) * key_rows + start + own
    store_rows(grads.key, target, sums.key * (scale / LOG2_E), own < task.count, blocks.HEAD_DIM)
    store_rows(grads.value, target, sums.value, own < task.count, blocks.HEAD_DIM)

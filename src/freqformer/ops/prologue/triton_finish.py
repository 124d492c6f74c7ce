"""The second Triton kernel of the prologue: what no single tile can do. `triton.py` holds the host
side.

Shape legend: R rows (sample * H + head), N video and X text tokens, M low tokens, S rows of the key
buffer, T tiles, C cells, D head_dim. An argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import cast, load_tokens, norm_tokens
from freqformer.ops.prologue.triton_tokens import (
    DENSE,
    HIGH,
    LOW,
    MID,
    finite_where_masked,
    project,
    rotary_tables,
    row_band,
    seen_text,
    write_tokens,
)


@triton.jit
def _join_low(
    sums, targets, cell, cells, wide_row, rows, tiles, D: tl.constexpr, STEP: tl.constexpr
):
    """The mean key and value of a cell's tokens, from sums over its tiles."""
    cell_tiles, cell_counts, longest = cells
    channel = tl.arange(0, D)
    key, value = tl.zeros((D,), tl.float32), tl.zeros((D,), tl.float32)
    for first in range(0, longest, STEP):
        step = first + tl.arange(0, STEP)
        members = tl.load(cell_tiles + cell * longest + step, mask=step < longest, other=-1)
        entry = ((rows + wide_row) * tiles + members.to(tl.int64))[:, None] * D + channel[None, :]
        key += tl.sum(tl.load(sums + entry, mask=(members >= 0)[:, None], other=0.0), 0)
        value += tl.sum(
            tl.load(
                sums + rows.to(tl.int64) * tiles * D + entry,
                mask=(members >= 0)[:, None],
                other=0.0,
            ),
            0,
        )
    count = tl.load(cell_counts + cell).to(tl.float32)
    tl.store(targets[0] + channel, cast(key / count, targets[0].dtype.element_ty))
    tl.store(targets[1] + channel, cast(value / count, targets[1].dtype.element_ty))


@triton.jit
def _pool(
    inputs,
    strides,
    sample,
    head,
    cell,
    cells,
    layout,
    key_norm,
    rotary,
    eps,
    query,
    projectors,
    step,
    targets,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    RASTER: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The softmax pooling of one band of a cell's keys and values, tile by tile.

    Args:
        query: the pooling query of the head and band, (D,).
        projectors, step: of the band, for every class of tiles 3 matrices apart, and how far apart
            their summands are.
        targets: where the pooled key, the pooled value and the log-sum-exp of the scores go.
    """
    cell_tiles, _, longest = cells
    pooling = tl.load(query + tl.arange(0, D)).to(tl.float32)
    peak, total = float("-inf"), 0.0
    # Even and odd channels apart: so they are rotated, and a rotated tile needn't be put together.
    even, odd = tl.zeros((D // 2,), tl.float32), tl.zeros((D // 2,), tl.float32)
    pooled_value = tl.zeros((D,), tl.float32)
    for number in range(longest):
        tile = tl.load(cell_tiles + cell * longest + number)
        known = tile >= 0
        tile = tl.maximum(tile, 0)
        place = tl.load(layout[0] + tile) + tl.arange(0, SLOTS)
        live = known & (place < tl.load(layout[0] + tile + 1))
        if RASTER:
            place = tl.load(layout[1] + place, mask=live, other=0)
        projector = projectors + tl.load(layout[2] + tile) * 3 * SLOTS * SLOTS
        key = load_tokens(inputs[1], strides[1], sample, head, place, live, D)
        if key_norm is not None:
            key = norm_tokens(key, key_norm, eps, D)
        passed = project(projector, step, key, PARTS)
        # The first tile of a cell exists, so the peak is finite from the first step on.
        scores = tl.where(live, tl.sum(passed * pooling[None, :], 1) * (D**-0.5), float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 0))
        decay, weight = tl.exp(peak - new_peak), tl.exp(scores - new_peak)
        passed_even, passed_odd = tl.split(tl.reshape(passed * weight[:, None], (SLOTS, D // 2, 2)))
        even, odd = even * decay, odd * decay
        if rotary is not None:
            cos, sin = rotary_tables(rotary, place, live, D)
            even += tl.sum(passed_even * cos - passed_odd * sin, 0)
            odd += tl.sum(passed_even * sin + passed_odd * cos, 0)
        else:
            even += tl.sum(passed_even, 0)
            odd += tl.sum(passed_odd, 0)
        # The projector P is symmetric: the pooled value w^T (P v) is (P w)^T v, and P w takes far
        # fewer products than P v.
        spread = _project_vector(projector, step, weight, PARTS)
        value = load_tokens(inputs[2], strides[2], sample, head, place, live, D)
        pooled_value = pooled_value * decay + tl.sum(value.to(tl.float32) * spread[:, None], 0)
        total = total * decay + tl.sum(weight, 0)
        peak = new_peak
    channel = tl.arange(0, D)
    pooled_key = tl.reshape(tl.join(even, odd), (D,))
    tl.store(targets[0] + channel, cast(pooled_key / total, targets[0].dtype.element_ty))
    tl.store(targets[1] + channel, cast(pooled_value / total, targets[1].dtype.element_ty))
    tl.store(targets[2], peak + tl.log(total))


@triton.jit
def _project_vector(matrix, step, x, PARTS: tl.constexpr):
    """A square matrix, in PARTS summands `step` apart, times a float32 vector; sums of float32
    products.

    Not as a product of matrices with a few columns: Triton 3.6 reads shared memory out of range for
    one with 8 warps.
    """
    SLOTS: tl.constexpr = x.shape[0]
    entry = matrix + tl.arange(0, SLOTS)[:, None] * SLOTS + tl.arange(0, SLOTS)[None, :]
    total = tl.zeros((SLOTS,), tl.float32)
    for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.sum(tl.load(entry + part * step).to(tl.float32) * x[None, :], 1)
    return total


@triton.jit
def _rank(
    allocation, allocation_strides, heads, rows, row, order, bands, band_blocks, ROWS: tl.constexpr
):
    """The place of a row when rows run by descending length of their key lists, ties by number."""
    other = tl.arange(0, ROWS)
    known = other < rows
    band = row_band(allocation, allocation_strides, row // heads, row % heads)
    others = row_band(
        allocation,
        allocation_strides,
        tl.where(known, other // heads, 0),
        tl.where(known, other % heads, 0),
    )
    mine, blocks = tl.load(band_blocks + band), tl.load(band_blocks + others)
    earlier = known & ((blocks > mine) | ((blocks == mine) & (other < row)))
    tl.store(order + tl.sum(earlier.to(tl.int32), 0), row)
    tl.store(bands + row, band)


@triton.jit
def finish_rows(
    inputs,
    strides,
    allocation,
    allocation_strides,
    buffers,
    sums,
    pool_lse,
    layout,
    cells,
    projectors,
    projector_step,
    learned,
    routing,
    zeros,
    text_mask,
    sizes,
    segments,
    jobs,
    eps,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    RASTER: tl.constexpr,
    PARTS: tl.constexpr,
    STEP: tl.constexpr,
    TEXT_SLOTS: tl.constexpr,
    PAD: tl.constexpr,
    ROWS: tl.constexpr,
    BRANCH: tl.constexpr,
):
    """What no single tile can do: summaries, text tokens, zero rows, and the order of rows. One job
    of one row.

    Args:
        inputs, strides, allocation, allocation_strides, buffers, sums, eps: as in `prepare_tiles`.
        pool_lse: float32 (R, C, 2), log-sum-exp of the pooling scores of every cell in the mid and
            high band.
        layout: tile offsets, raster places and classes of tiles.
        cells: tiles of every cell, tokens of every cell, most tiles of a cell.
        projectors, projector_step: band projectors (PARTS, classes, 3, SLOTS, SLOTS), and how far
            apart the parts are.
        learned: norm weights of queries and keys, rotary tables and pooling queries; each may be
            None.
        routing: order int32 (R,) and bands int32 (R,) to write, and key blocks by band.
        zeros: first rows of the zero rows.
        text_mask: (B, X), 0 where a text token may not be seen; None where all may.
        sizes: H, R, N + X, N + X + M, S, T, N, M.
        segments: first rows of the low, mid and high summaries and of the text.
        jobs: how many programs of a row do cells, text and zero rows; one more does the order.
        BRANCH: whether every row has low tokens, for the LOW branch of its head.
    """
    heads, rows, tokens, query_rows, key_rows, tiles, video, num_low = sizes
    query_norm, key_norm, rotary, pooling = learned
    row, job = tl.program_id(0) % rows, tl.program_id(0) // rows
    sample, head = row // heads, row % heads
    band = row_band(allocation, allocation_strides, sample, head)
    wide_row = row.to(tl.int64)
    keys, values = buffers[1] + wide_row * key_rows * D, buffers[2] + wide_row * key_rows * D
    channel = tl.arange(0, D)
    if job < jobs[0]:
        if sums is not None:
            if (band == MID) | (band == HIGH):
                place = (segments[0] + job) * D
                _join_low(
                    sums, (keys + place, values + place), job, cells, wide_row, rows, tiles, D, STEP
                )
        if pooling is not None:
            for other in tl.static_range(1, 3):  # pyright: ignore[reportGeneralTypeIssues]
                if ((band != other) & (band != DENSE)) | BRANCH:
                    place = (segments[other] + job) * D
                    query = pooling + (head * 2 + other - 1) * D
                    # fmt: off
                    _pool(inputs, strides, sample, head, job, cells, layout, key_norm, rotary, eps,
                          query, projectors + other * SLOTS * SLOTS, projector_step,
                          (keys + place, values + place,
                          pool_lse + (wide_row * jobs[0] + job) * 2 + other - 1),
                          SLOTS, D, RASTER, PARTS)
                    # fmt: on
    elif job < jobs[0] + jobs[1]:
        place = (job - jobs[0]) * TEXT_SLOTS + tl.arange(0, TEXT_SLOTS)
        live = place < tokens - video
        seen = seen_text(text_mask, sample, tokens - video, place, live)
        query = load_tokens(inputs[0], strides[0], sample, head, video + place, live, D)
        if text_mask is not None:
            query = finite_where_masked(query, seen)
        # Masked keys and values weigh nothing, but 0 times NaN is NaN.
        key = load_tokens(inputs[1], strides[1], sample, head, video + place, seen, D)
        value = load_tokens(inputs[2], strides[2], sample, head, video + place, seen, D)
        if query_norm is not None:
            query = norm_tokens(query, query_norm, eps, D)
        if key_norm is not None:
            key = norm_tokens(key, key_norm, eps, D)
        write_tokens(buffers[0] + wide_row * query_rows * D, video + place, live, query)
        write_tokens(keys, segments[3] + place, live, key)
        write_tokens(values, segments[3] + place, live, value)
    elif job < jobs[0] + jobs[1] + jobs[2]:
        entry = (tl.load(zeros + job - jobs[0] - jobs[1]) + tl.arange(0, PAD))[
            :, None
        ] * D + channel[None, :]
        nothing = tl.zeros((PAD, D), buffers[1].dtype.element_ty)
        tl.store(keys + entry, nothing)
        tl.store(values + entry, nothing)
        if job == jobs[0] + jobs[1]:
            # Backward, blocks of the queries before read so far behind their end; what they read
            # counts for nothing, if finite.
            empty_at, empty = tokens, num_low
            if (band == LOW) | BRANCH:
                empty = 0
            if band == LOW:
                empty_at, empty = 0, video
            place = empty_at + tl.arange(0, PAD)
            written = tl.arange(0, PAD) < empty
            write_tokens(buffers[0] + wide_row * query_rows * D, place, written, nothing)
    else:
        _rank(
            allocation,
            allocation_strides,
            heads,
            rows,
            row,
            routing[0],
            routing[1],
            routing[2],
            ROWS,
        )

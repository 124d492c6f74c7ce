"""The Triton kernel of the merge: `triton.py` holds the host side.

Shape legend: B batch, H heads, R = B * H rows, N video and X text tokens, M low tokens, T tiles, D
head_dim, SLOTS tokens of a tile. An argument that is None is absent from the compiled kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import branch_gates, cast, dot

LOW, DENSE = tl.constexpr(0), tl.constexpr(3)


@triton.jit
def expanded(
    low_out,
    row,
    near,
    matrix,
    weight_step,
    num_low,
    ROWS: tl.constexpr,
    NEAR: tl.constexpr,
    STEP: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
):
    """ROWS tokens of one tile from the low tokens near it, float32 (ROWS, D).

    Args:
        low_out: (R, M, D).
        near: low tokens near the tile, (NEAR,), -1 for none.
        matrix, weight_step: the tokens' rows of the summands (SLOTS, NEAR) of the tile's class, and
            how far apart the summands are.
        STEP: low tokens that are multiplied at once.
    """
    token, channel = tl.arange(0, ROWS), tl.arange(0, D)
    total = tl.zeros((ROWS, D), tl.float32)
    for first in range(0, NEAR, STEP):
        step = first + tl.arange(0, STEP)
        source = tl.load(near + step)
        entry = (row.to(tl.int64) * num_low + source)[:, None] * D + channel[None, :]
        low = tl.load(low_out + entry, mask=(source >= 0)[:, None], other=0.0)
        for part in tl.static_range(PARTS):  # pyright: ignore[reportGeneralTypeIssues]
            weight = tl.load(matrix + part * weight_step + token[:, None] * NEAR + step[None, :])
            total = dot(weight, low, total)
    return total


@triton.jit
def merge_kernel(
    low_out,
    own,
    out,
    gates,
    allocation,
    allocation_strides,
    layout,
    near,
    weights,
    weight_step,
    sizes,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    NEAR: tl.constexpr,
    STEP: tl.constexpr,
    D: tl.constexpr,
    RASTER: tl.constexpr,
    BRANCH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """ROWS tokens of one tile of one row: outputs of LOW heads return to all tokens, and with
    BRANCH every head gets (1 + g[0]) * own + g[1] * low. NaN for a row whose band is none.

    Args:
        low_out: (R, M, D).
        own: (B, N + X, H, D), the bands' outputs; may be `out`. Read with BRANCH, but in LOW rows.
        out: (B, N + X, H, D). Without BRANCH video tokens of LOW rows are written; with it all
            video tokens, and text tokens, which have no branch, by programs behind the tiles.
        gates: by token (B, N, 2, H) and by sample (B, 2, H), each may be None.
        allocation, allocation_strides: the band of every (sample, head), whole numbers.
        layout: tile offsets, raster places and classes of tiles.
        near: low tokens near every tile, int32 (T, NEAR), -1 for none.
        weights, weight_step: summands (PARTS, classes, SLOTS, NEAR), and how far apart they are.
        sizes: H, R, N + X, N, M, T.
    """
    heads, rows, tokens, video, num_low, tiles = sizes
    PARTS_OF_TILE: tl.constexpr = SLOTS // ROWS
    # Heads run fastest: in memory the heads of a token are neighbours.
    row, index = tl.program_id(0) % rows, tl.program_id(0) // rows
    first_slot = index % PARTS_OF_TILE * ROWS
    index = index // PARTS_OF_TILE
    sample, head = row // heads, row % heads
    slot, channel = first_slot + tl.arange(0, ROWS), tl.arange(0, D)
    first_out = sample.to(tl.int64) * tokens
    if BRANCH:
        if index >= tiles:
            place = video + (index - tiles) * SLOTS + slot
            entry = ((first_out + place)[:, None] * heads + head) * D + channel[None, :]
            live = (place < tokens)[:, None]
            tl.store(out + entry, tl.load(own + entry, mask=live, other=0.0), mask=live)
            return
    band = tl.load(allocation + sample * allocation_strides[0] + head * allocation_strides[1])
    known = (band >= LOW) & (band <= DENSE)
    if not BRANCH:
        if known & (band != LOW):
            return
    start = tl.load(layout[0] + index)
    live = slot < tl.load(layout[0] + index + 1) - start
    place = start + slot
    if RASTER:
        place = tl.load(layout[1] + place, mask=live, other=0)
    target = ((first_out + place)[:, None] * heads + head) * D + channel[None, :]
    matrix = weights + (tl.load(layout[2] + index) * SLOTS + first_slot) * NEAR
    near += index * NEAR
    low = expanded(low_out, row, near, matrix, weight_step, num_low, ROWS, NEAR, STEP, D, PARTS)
    if BRANCH:
        own_gate, low_gate = branch_gates(
            gates[0], gates[1], sample, head, heads, video, place, live
        )
        # Read once, so kept out of the first cache, where the weights of a class stay.
        read = live[:, None] & (band != LOW)
        x = tl.load(own + target, mask=read, other=0.0, cache_modifier=".cg").to(tl.float32)
        x = tl.where(band == LOW, low, x)
        low = x + own_gate[:, None] * x + low_gate[:, None] * low
    if not known:
        low = tl.full((ROWS, D), float("nan"), tl.float32)
    tl.store(out + target, cast(low, out.dtype.element_ty), mask=live[:, None])

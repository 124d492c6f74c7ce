"""What the prologue costs: one launch over tiles, and one over rows that ends summaries and
padding. Tensors of the call have head_dim channels, buffers and sums their padded width.

Derivation: docs/complexity.md; shape legend as in `freqformer.cost`.
"""

from __future__ import annotations

from freqformer.buffers import (
    buffer_row_bytes,
    buffer_width,
    key_layout,
    padding,
    query_rows,
    selects_tiles,
)
from freqformer.config import Band
from freqformer.cost import NOTHING, STATISTIC_BYTES, Call, Cost, compress_flops, dct_flops
from freqformer.grid import TILE_SLOTS
from freqformer.plan import AttentionPlan

NORM_FLOPS = 4
"""Per channel: square, add, two products."""
ROTARY_FLOPS = 3
"""Per channel: two products and a sum of a pair's half."""
POOLING_FLOPS = 6
"""Per channel of a learned pooling: scores, weighting and sums."""
POOLING_PRODUCTS = 2.5
"""Products with a band's projector in the backward over the forward's: kernels take it in two
summands of 16 bits, and gradients too."""


def tiles_cost(call: Call) -> Cost:
    """Norm, rotary embedding, tile order, low tokens and sums over tiles, one pass over query, key
    and value."""
    plan = call.plan
    channels = plan.head_dim * call.video
    # Cosines and sines of half the channels each, shared by all heads.
    tables = STATISTIC_BYTES * channels
    scored = call.count(Band.MID) if selects_tiles(plan) else 0
    flops = (
        call.count() * 2 * channels * (NORM_FLOPS + ROTARY_FLOPS)
        + call.low_rows * 3 * compress_flops(plan)
        + scored * 2 * channels
    )
    read = 3 * call.count() * call.tokens * call.row_bytes + tables
    write = _rows_written(call) * buffer_row_bytes(plan, call.element_size) + sums_bytes(call)
    return Cost(flops, flops * padding(plan), float(read), float(write), 1)


def tiles_backward_cost(call: Call) -> Cost:
    """Gradients of query, key and value from those of the buffers, and of norms from the inputs."""
    forward = tiles_cost(call)
    tokens = call.count() * call.tokens * call.row_bytes
    return Cost(
        forward.flops,
        forward.executed,
        forward.write_bytes - sums_bytes(call) + 2.0 * tokens,
        3.0 * tokens,
        2 if call.plan.num_text_tokens else 1,
    )


def scales_cost(call: Call) -> Cost:
    """The root mean square of every query and key over all heads' channels; nothing where the norm
    is of each head's own."""
    if not call.norm_across_heads:
        return NOTHING
    rows = 2 * call.count() * call.tokens
    flops = 2.0 * rows * call.plan.head_dim
    return Cost(flops, flops, float(rows * call.row_bytes), _scale_bytes(call), 1)


def scales_backward_cost(call: Call) -> Cost:
    """What the length of all heads' channels takes off the gradients of queries and keys, which are
    read and written once more."""
    if not call.norm_across_heads:
        return NOTHING
    rows = 2 * call.count() * call.tokens
    flops = 3.0 * rows * call.plan.head_dim
    along = float(rows * STATISTIC_BYTES)
    read = 2.0 * rows * call.row_bytes + along + _scale_bytes(call)
    return Cost(flops, flops, read, float(rows * call.row_bytes), 1)


def _scale_bytes(call: Call) -> float:
    """Bytes of one number for every query and key."""
    return 2.0 * call.tokens * STATISTIC_BYTES


def summaries_cost(call: Call) -> Cost:
    """Summary tokens: means of cells, and learned poolings of band-passed keys and values."""
    plan = call.plan
    if plan.cells.num_cells == 0:
        return Cost(0.0, 0.0, 0.0, 0.0, 1)  # the launch still clears the buffers' padding
    summed = call.count(Band.MID, Band.HIGH)
    learned = 0
    channels = plan.head_dim * call.video
    pair = 2 * call.row_bytes
    read = 2.0 * summed * sum_bytes(plan)
    flops = 2.0 * channels * summed
    products = 0
    write = summary_bytes(call)
    for band in Band:
        _, _, mid, high, _ = call.segments(band)
        pooled = bool(mid) + bool(high)
        if not pooled:
            continue
        # Of keys and values one transform, and one inverse for each band that is pooled.
        transforms = 2 * (1 + pooled) * dct_flops(plan) + pooled * POOLING_FLOPS * channels
        flops += call.count(band) * transforms
        # Keys and values are read once for both bands. What each tile gives is summed up by the
        # second launch.
        partial = pooled * pool_bytes(plan)
        read += call.count(band) * (call.video * pair + partial)
        write += call.count(band) * partial
        products += call.count(band) * pooled
        learned = 1
    # Kernels multiply each tile's keys by the projector to a band instead of transforming them.
    executed = 2.0 * products * plan.layout.num_tiles * TILE_SLOTS**2 * buffer_width(plan.head_dim)
    return Cost(flops, executed, read, float(write), 1 + learned)


def summaries_backward_cost(call: Call) -> Cost:
    """Gradients of learned poolings; those of means are part of the tiles'."""
    forward = summaries_cost(call)
    learned = call.plan.learned_summaries and call.plan.cells.num_cells > 0
    read = forward.read_bytes if learned else 0.0
    return Cost(forward.flops, POOLING_PRODUCTS * forward.executed, read, 0.0, int(learned))


def workspace_bytes(plan: AttentionPlan, rows: int, element_size: int) -> int:
    """Bytes of the buffers that the prologue makes: query, key and value in tile order with low
    tokens, sums over tiles, and poolings of tiles.

    Args:
        plan: of the call.
        rows: samples times heads.
        element_size: bytes of an element of the query.
    """
    held = rows * (query_rows(plan) + 2 * key_layout(plan).rows)
    held *= buffer_row_bytes(plan, element_size)
    if selects_tiles(plan) or plan.cells.num_cells:
        held += 3 * rows * sum_bytes(plan)
    if plan.learned_summaries and plan.cells.num_cells:
        held += 2 * rows * pool_bytes(plan)
    return held


def sums_bytes(call: Call) -> int:
    """Bytes of the tile sums of queries, keys and values that MID and HIGH heads keep for selection
    and low summaries."""
    needed = selects_tiles(call.plan) or call.plan.cells.num_cells
    return 3 * call.count(Band.MID, Band.HIGH) * sum_bytes(call.plan) if needed else 0


def summary_bytes(call: Call) -> int:
    """Bytes of the keys and values of summary tokens of all heads."""
    tokens = sum(call.count(band) * call.summary_keys(band) for band in Band)
    return 2 * tokens * buffer_row_bytes(call.plan, call.element_size)


def pool_bytes(plan: AttentionPlan) -> int:
    """Bytes of one head's poolings of single tiles in one band: of keys, of values, and two
    statistics."""
    return plan.layout.num_tiles * 2 * (buffer_width(plan.head_dim) + 1) * STATISTIC_BYTES


def sum_bytes(plan: AttentionPlan) -> int:
    """Bytes of one head's sums over tiles of one tensor."""
    return plan.layout.num_tiles * buffer_width(plan.head_dim) * STATISTIC_BYTES


def _rows_written(call: Call) -> int:
    """Rows of query, key and value buffers that are written."""
    plan = call.plan
    low = call.count(Band.LOW)
    exact = 3 * (call.count() - low) * call.video
    # With text, LOW heads write exact keys and values too: text queries see them.
    seen_by_text = 2 * low * call.video if plan.num_text_tokens else 0
    text = 3 * call.count() * plan.num_text_tokens
    return exact + seen_by_text + text + 3 * call.low_rows * plan.num_low_tokens

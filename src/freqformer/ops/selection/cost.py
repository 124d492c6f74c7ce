"""What the choice of tiles costs; shape legend as in `freqformer.cost`."""

from __future__ import annotations

from freqformer.buffers import buffer_width, padding, score_bytes, selects_tiles
from freqformer.config import Band
from freqformer.cost import NOTHING, STATISTIC_BYTES, Call, Cost
from freqformer.plan import AttentionPlan


def selection_cost(call: Call) -> Cost:
    """Scores of all pairs of tiles of MID heads, and their lists; it has no gradient."""
    rows = call.count(Band.MID) if selects_tiles(call.plan) else 0
    if rows == 0:
        return NOTHING
    tiles = call.plan.layout.num_tiles
    flops = 2.0 * rows * tiles**2 * call.plan.head_dim
    read = 2 * rows * tiles * buffer_width(call.plan.head_dim) * STATISTIC_BYTES
    executed = flops * padding(call.plan)
    return Cost(flops, executed, float(read), float(rows * list_bytes(call.plan)), 1)


def list_bytes(plan: AttentionPlan) -> int:
    """Bytes of one head's lists, and of the biases of its low summaries."""
    kept = plan.mid_capacity + plan.cells.num_cells
    return plan.layout.num_tiles * kept * STATISTIC_BYTES


def workspace_bytes(plan: AttentionPlan, rows: int) -> int:
    """Bytes that `rows` heads' choice holds: lists, biases, and scores of as many tiles as are
    scored at once."""
    if not selects_tiles(plan):
        return 0
    return rows * list_bytes(plan) + score_bytes(rows, plan.layout.num_tiles)

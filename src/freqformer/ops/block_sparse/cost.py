"""What the attention launch and its gradients cost: own bands and a LOW branch's queries together.

Useful FLOPs are those of head_dim, what kernels execute and read of buffers that of their padded
width. Derivation: docs/complexity.md; shape legend as in `freqformer.cost`.
"""

from __future__ import annotations

from dataclasses import dataclass

from freqformer.buffers import (
    buffer_row_bytes,
    buffer_width,
    padding,
    query_rows,
    selects_tiles,
    text_parts,
)
from freqformer.config import Band
from freqformer.cost import STATISTIC_BYTES, Call, Cost
from freqformer.ops.plan_tables import kept_by_plan
from freqformer.plan import AttentionPlan, Flops

BACKWARD_FACTOR = 2.5
"""Backward over forward of softmax attention: five matrix products (the scores again, dV, dP, dQ,
dK) against two."""
QUERY_PRODUCTS, KEY_PRODUCTS = 3, 4
"""Products per pair of blocks, where the forward has two: scores, dP and dQ in the launch that
finds gradients of queries; scores, dP, dV and dK in those of keys and values."""
GATE_GRADIENT_FLOPS = 3
"""Per channel of the own band, with a LOW branch: the gradient times its gate; and of the gate's
own gradient a product, and a sum over channels."""
BACKWARD_LAUNCHES = 4
"""Gradients of queries, of video keys, of extra keys, and what joins the parts of the last."""


@dataclass(frozen=True)
class QueryCounts:
    """Attention of the queries of one head."""

    flops: Flops
    key_blocks: tuple[tuple[int, int], ...]
    """(blocks of keys that a query block reads, query blocks): distinct lengths."""
    kv_slots: int
    """Slots of keys that all query blocks read together."""


@kept_by_plan
def query_counts(plan: AttentionPlan, band: Band, text: bool = True) -> QueryCounts:
    """Count the attention of one head's queries in `band`.

    Args:
        plan: of the call.
        band: what the video queries see.
        text: whether the head's text queries are counted too.
    """
    lengths, useful = plan.key_blocks(band), plan.band_flops(band).useful
    num_text, video = plan.num_text_tokens, plan.layout.grid.num_tokens
    if not text:
        lengths = lengths[: len(lengths) - -(-num_text // plan.layout.block)]
        useful -= 4.0 * plan.head_dim * num_text * (video + num_text)
    distinct, times = lengths.unique(return_counts=True)
    blocks = tuple(zip(distinct.tolist(), times.tolist(), strict=True))
    slots = plan.layout.block * int(lengths.sum())
    executed = 4 * buffer_width(plan.head_dim) * plan.layout.block * slots
    return QueryCounts(Flops(useful, executed), blocks, slots)


def attention_flops(call: Call) -> Flops:
    """FLOPs of all queries of a call."""
    known = [(query_counts(call.plan, g.band, g.text).flops, g.heads) for g in call.groups]
    return Flops(
        sum(flops.useful * heads for flops, heads in known),
        sum(flops.executed * heads for flops, heads in known),
    )


def kv_bytes(call: Call) -> int:
    """Bytes of keys and values that blocks of queries read, without reuse between them."""
    slots = sum(query_counts(call.plan, g.band, g.text).kv_slots * g.heads for g in call.groups)
    return 2 * slots * buffer_row_bytes(call.plan, call.element_size)


def num_queries(call: Call) -> int:
    """Queries of all heads together."""
    low, text = call.plan.num_low_tokens, call.plan.num_text_tokens
    return sum(
        group.heads * ((low if group.band == Band.LOW else call.video) + text * group.text)
        for group in call.groups
    )


def num_keys(call: Call) -> int:
    """Keys that the queries of all heads see, each once."""
    total, text = 0, call.plan.num_text_tokens
    for band in Band:
        # A LOW head's text queries see exact keys, its video queries none.
        exact = 0 if band == Band.LOW and not text else call.video
        total += call.count(band) * (exact + sum(call.segments(band)))
    return total


def attention_cost(call: Call) -> Cost:
    """The one launch: queries, keys, values and lists once, outputs and log-sum-exps once."""
    plan, flops = call.plan, attention_flops(call)
    queries, keys = num_queries(call), num_keys(call)
    read = float((queries + 2 * keys) * buffer_row_bytes(plan, call.element_size))
    if selects_tiles(plan):
        listed = plan.mid_capacity + plan.cells.num_cells
        read += call.count(Band.MID) * plan.layout.num_tiles * listed * STATISTIC_BYTES
    write = float(queries * (call.row_bytes + STATISTIC_BYTES))
    # Text queries that see many tiles are split over keys, and joined by a second small launch.
    joined = plan.num_text_tokens > 0 and text_parts(plan.layout.num_tiles) > 1
    return Cost(flops.useful, flops.executed, read, write, 1 + joined)


def gather_cost(call: Call) -> Cost:
    """The output's gradient into tile order: read with the output and what its rounding took. With
    a LOW branch it is scaled by the own band's gate, which gets its gradient here, float32."""
    queries, gated = num_queries(call), call.branched * call.video
    wide = float(queries * call.row_bytes)
    flops = float(GATE_GRADIENT_FLOPS * gated * call.plan.head_dim)
    read = 3 * wide + gated * call.element_size
    written = queries * buffer_row_bytes(call.plan, call.element_size)
    write = float(written + _statistics(queries) + gated * STATISTIC_BYTES)
    return Cost(flops, flops * padding(call.plan), read, write, 1)


def attention_backward_cost(call: Call) -> Cost:
    """Gradients of queries, keys and values from forward's tensors and the output's gradient."""
    forward, queries = attention_cost(call), num_queries(call)
    row_bytes = buffer_row_bytes(call.plan, call.element_size)
    return Cost(
        flops=BACKWARD_FACTOR * forward.flops,
        executed=(QUERY_PRODUCTS + KEY_PRODUCTS) / 2 * forward.executed,
        read_bytes=forward.read_bytes + queries * row_bytes + _statistics(queries),
        write_bytes=(queries + 2.0 * num_keys(call)) * row_bytes,
        launches=BACKWARD_LAUNCHES,
    )


def _statistics(queries: int) -> int:
    """Bytes of a query's log-sum-exp, and of the sum over its gradient times its output."""
    return 2 * queries * STATISTIC_BYTES


def workspace_bytes(plan: AttentionPlan, rows: int, element_size: int) -> int:
    """Bytes that the launch holds in addition to its inputs and the output: outputs of low tokens,
    log-sum-exps, and parts of text queries' lists.

    Args:
        plan: of the call.
        rows: samples times heads.
        element_size: bytes of an element of the query.
    """
    text, width = plan.num_text_tokens, plan.head_dim
    low = plan.num_low_tokens * width * element_size
    held = rows * (low + query_rows(plan) * STATISTIC_BYTES)
    parts = text_parts(plan.layout.num_tiles)
    if parts > 1:
        held += rows * parts * text * (width + 1) * STATISTIC_BYTES
    return held

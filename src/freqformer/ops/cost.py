"""What one call of the operation costs, from what each of its parts states."""

from __future__ import annotations

from freqformer.buffers import buffer_row_bytes, buffer_width, key_layout, query_rows
from freqformer.cost import STATISTIC_BYTES, Call, Cost
from freqformer.ops.block_sparse import cost as attention
from freqformer.ops.merge import cost as merge
from freqformer.ops.prologue import cost as prologue
from freqformer.ops.selection import cost as selection
from freqformer.plan import AttentionPlan


def forward_costs(call: Call) -> dict[str, Cost]:
    """The forward by stage, in the order of its launches."""
    scales = {"norm": prologue.scales_cost(call)} if call.norm_across_heads else {}
    return scales | {
        "prologue": prologue.tiles_cost(call),
        "summaries": prologue.summaries_cost(call),
        "selection": selection.selection_cost(call),
        "attention": attention.attention_cost(call),
        "merge": merge.merge_cost(call),
    }


def backward_costs(call: Call) -> dict[str, Cost]:
    """The backward by stage: queries, keys and values in tile order are not kept, so that the
    prologue runs again."""
    again: dict[str, Cost] = {}
    last: dict[str, Cost] = {}
    if call.norm_across_heads:
        again = {"norm again": prologue.scales_cost(call).again}
        last = {"norm": prologue.scales_backward_cost(call)}
    stages = {
        "prologue again": prologue.tiles_cost(call).again,
        "summaries again": prologue.summaries_cost(call).again,
        "merge": merge.merge_backward_cost(call),
        "gather": attention.gather_cost(call),
        "attention": attention.attention_backward_cost(call),
        "prologue": prologue.tiles_backward_cost(call),
        "summaries": prologue.summaries_backward_cost(call),
    }
    return again | stages | last


def workspace_bytes(plan: AttentionPlan, rows: int, element_size: int) -> int:
    """Bytes that one call holds in addition to query, key, value and output, all at once; a LOW
    branch holds no more, since its sum takes the own output's place.

    Args:
        plan: the plan of the call.
        rows: samples times heads; of some of the plan's heads, where others are elsewhere, those.
        element_size: bytes of an element of the query.
    """
    return (
        prologue.workspace_bytes(plan, rows, element_size)
        + selection.workspace_bytes(plan, rows)
        + attention.workspace_bytes(plan, rows, element_size)
    )


def training_bytes(plan: AttentionPlan, element_size: int, low_branch: bool = False) -> float:
    """Most bytes that forward and backward of all the plan's heads hold at once in addition to
    query, key, value and the output's gradient: when the prologue's gradients are taken.

    Args:
        plan, element_size: as `workspace_bytes` takes them.
        low_branch: whether every head has one; its gates are counted too.
    """
    video, tiles = plan.layout.grid.num_tokens, plan.layout.num_tiles
    tokens, queries = video + plan.num_text_tokens, query_rows(plan)
    # The output, and gradients of query, key and value; what rounding took; buffers and their
    # gradients; outputs of low tokens and their gradient.
    buffers = queries + 2 * key_layout(plan).rows
    wide = 4 * tokens + queries + 2 * plan.num_low_tokens
    # A log-sum-exp and two sums for each query; the gradient of every tile's sums.
    narrow = 3 * queries + 3 * tiles * buffer_width(plan.head_dim)
    gates = 0
    if low_branch:
        # The own bands' output is kept; gates, their gradients and those before they are rounded.
        wide += tokens
        gates = merge.BRANCHES * video * (2 * element_size + STATISTIC_BYTES)
    if plan.learned_summaries and plan.cells.num_cells:
        narrow += 4 * tokens
    row = wide * plan.head_dim * element_size + 2 * buffers * buffer_row_bytes(plan, element_size)
    row += narrow * STATISTIC_BYTES + gates
    return float(plan.num_heads * row)

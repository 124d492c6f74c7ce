"""The Triton kernel of text tokens in the prologue's backward.

`launch_backward.py` holds the host side, `arguments.py` the shape legend.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.prologue.triton.backward_tokens import (
    load_grads,
    norm_grads,
    rotated_back,
    write_grads,
)
from freqformer.ops.prologue.triton.tokens import (
    finite_where_masked,
    load_tokens,
    seen_text,
    this_program,
)


@triton.jit
def text_grads(
    qkv,
    row_grads,
    text_mask,
    learned,
    outputs,
    sizes,
    TEXT_SLOTS: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
):
    """Gradients of TEXT_SLOTS text tokens of one row: text has no bands, so that only a norm and a
    rotation lie between the call's tokens and the buffers.

    Args:
        qkv, learned, sizes: see `arguments.py`.
        row_grads, outputs: `RowGrads`, `Outputs`.
        text_mask: (B, X), 0 where a text token may not be seen; None where all may.
    """
    heads = sizes.heads
    program = this_program(sizes)
    sample = program.sample
    head = program.head
    num_text = sizes.tokens - sizes.video
    slot = program.part * TEXT_SLOTS + tl.arange(0, TEXT_SLOTS)
    # Text follows the video's tokens, in the call and in the query buffer.
    place = sizes.video + slot
    live = slot < num_text
    seen = seen_text(text_mask, sample, num_text, slot, live)
    # Gradients of the call's tokens are contiguous, the heads of a token side by side.
    own = (sample.to(tl.int64) * sizes.tokens * heads + head) * D
    target = place * heads
    # Shares of text follow those of the row's tiles.
    share_at = (program.wide_row * outputs.shares + sizes.tiles + program.part) * W
    share_at += tl.arange(0, W)
    text_at = (program.wide_row * sizes.key_rows + sizes.segments.text) * W

    query_along = None
    key_along = None
    if outputs.along is not None:
        # Keys follow the queries of all rows.
        query_along = outputs.along + program.wide_row * sizes.tokens
        key_along = query_along + tl.cast(sizes.rows, tl.int64) * sizes.tokens

    query_row = row_grads.query + program.wide_row * sizes.query_rows * W
    g = load_grads(query_row, place, live, W).to(tl.float32)
    if learned.TURNS:
        if learned.rotary.TURNS_TEXT:
            g = rotated_back(g, learned.rotary, sample, head, place, live)
    if qkv.query.NORMS_TEXT:
        raw = load_tokens(qkv.query, sample, head, place, live, D, W)
        if text_mask is not None:
            # A masked query has a gradient of its own, and as the forward took it.
            raw = finite_where_masked(raw, seen)
        found = norm_grads(
            g, raw, qkv.query, sample, head, place, live, sizes.tokens, learned.eps, D
        )
        g = found.tokens
        tl.store(outputs.query_norm + share_at, found.weight)
        if qkv.query.scales is not None:
            tl.store(query_along + place, found.along, mask=live)
    elif qkv.query.norm is not None:
        tl.store(outputs.query_norm + share_at, tl.zeros((W,), tl.float32))
    write_grads(outputs.query + own, qkv.query, target, live, g, D)

    g = load_grads(row_grads.key + text_at, slot, live, W).to(tl.float32)
    if learned.TURNS:
        if learned.rotary.TURNS_TEXT:
            g = rotated_back(g, learned.rotary, sample, head, place, live)
    if qkv.key.NORMS_TEXT:
        # Masked keys count as zeros, as in the forward: 0 times NaN would be NaN.
        raw = load_tokens(qkv.key, sample, head, place, seen, D, W)
        found = norm_grads(g, raw, qkv.key, sample, head, place, live, sizes.tokens, learned.eps, D)
        g = found.tokens
        tl.store(outputs.key_norm + share_at, found.weight)
        if qkv.key.scales is not None:
            tl.store(key_along + place, found.along, mask=live)
    elif qkv.key.norm is not None:
        tl.store(outputs.key_norm + share_at, tl.zeros((W,), tl.float32))
    write_grads(outputs.key + own, qkv.key, target, live, g, D)

    # Values went through unchanged, and so do their gradients.
    g = load_grads(row_grads.value + text_at, slot, live, W).to(tl.float32)
    write_grads(outputs.value + own, qkv.value, target, live, g, D)

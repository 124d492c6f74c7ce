"""The Triton kernel that joins the parts of text queries: `triton.py` holds the host side."""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.block_sparse.triton_blocks import store_rows
from freqformer.ops.block_sparse.triton_softmax import MASKED


@triton.jit
def join_text_kernel(
    part_out,
    part_lse,
    out,
    lse,
    heads,
    text_parts,
    num_tokens,
    num_text,
    num_low,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Join the parts of ROWS text queries of one row, each part weighted by exp(its
    log-sum-exp)."""
    blocks = tl.cdiv(num_text, ROWS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    written = place < num_text
    top = tl.full([ROWS], MASKED, tl.float32)
    for part in range(text_parts):
        log_sum = tl.load(
            part_lse + (row * text_parts + part) * num_text + place, mask=written, other=0.0
        )
        top = tl.maximum(top, log_sum)
    base = tl.where(top == MASKED, 0.0, top)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for part in range(text_parts):
        source = (row * text_parts + part) * num_text + place
        weight = tl.exp(tl.load(part_lse + source, mask=written, other=0.0) - base)
        pointer = part_out + source[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        acc += weight[:, None] * tl.load(pointer, mask=written[:, None], other=0.0)
        total += weight
    some = total > 0
    total = tl.where(some, total, 1.0)
    tokens = num_tokens + num_text
    log_sum = tl.where(some, base + tl.log(total), MASKED)
    tl.store(lse + row * (tokens + num_low) + num_tokens + place, log_sum, mask=written)
    acc = acc * (1.0 / total)[:, None]
    store_rows(
        out,
        (row // heads * tokens + num_tokens + place) * heads + row % heads,
        acc,
        written,
        HEAD_DIM,
    )

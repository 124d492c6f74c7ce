"""The Triton kernel that joins the parts of text queries: `launch.py` holds the host side."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.block_sparse.triton.blocks import store_rows
from freqformer.ops.block_sparse.triton.softmax import MASKED
from freqformer.ops.jit import real_channels


class TextParts(NamedTuple):
    """Results of text queries, each over one part of their keys. Shape legend: R rows, P parts, X
    text tokens, D head_dim."""

    out: Tensor
    """float32 (R, P, X, D)."""
    lse: Tensor
    """float32 (R, P, X), natural log-sum-exp of the part's logits."""


@triton.jit
def join_text_kernel(
    parts,
    out,
    lse,
    num_heads,
    num_parts,
    num_tokens,
    num_text,
    num_low,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Join the parts of ROWS text queries of one row, each part weighted by exp(its log-sum-exp).

    Args:
        parts: `TextParts`.
        out, lse: of `AttentionOutputs`, written for text queries.
        WIDTH, CHANNELS: of a block, and D of them.
    """
    blocks = tl.cdiv(num_text, ROWS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    written = place < num_text
    # The largest first: then no exponential overflows, however far the parts lie apart.
    m_i = tl.full([ROWS], MASKED, tl.float32)
    for part in range(num_parts):
        entry = (row * num_parts + part) * num_text + place
        m_i = tl.maximum(m_i, tl.load(parts.lse + entry, mask=written, other=0.0))
    # A query that saw no key in any part: -inf - -inf would be NaN.
    base = tl.where(m_i == MASKED, 0.0, m_i)
    l_i = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    real = real_channels(written, CHANNELS, WIDTH)
    # Loaded once more: to keep them, their number would have to be known when the kernel is
    # compiled.
    for part in range(num_parts):
        source = (row * num_parts + part) * num_text + place
        # Base e, as log-sum-exps are stored. A part in which a query saw no key has -inf, weight 0
        # and zeros.
        weight = tl.exp(tl.load(parts.lse + source, mask=written, other=0.0) - base)
        pointer = parts.out + source[:, None] * CHANNELS + tl.arange(0, WIDTH)[None, :]
        acc += weight[:, None] * tl.load(pointer, mask=real, other=0.0)
        l_i += weight
    some = l_i > 0
    # 0 / 0 would be NaN where the output is zero by definition.
    l_i = tl.where(some, l_i, 1.0)
    # Rows of the log-sum-exp hold low queries after the text, those of the output don't.
    tokens = num_tokens + num_text
    joined = tl.where(some, base + tl.log(l_i), MASKED)
    tl.store(lse + row * (tokens + num_low) + num_tokens + place, joined, mask=written)
    target = (row // num_heads * tokens + num_tokens + place) * num_heads + row % num_heads
    store_rows(out, target, acc * (1.0 / l_i)[:, None], written, CHANNELS)

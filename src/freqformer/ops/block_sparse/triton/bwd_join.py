"""The Triton kernel of block-sparse attention, backward, that joins what parts of a row's queries
give to its summaries and text keys.

Shape legend: R rows, P parts, E rows of the key buffer, D head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.block_sparse.triton.blocks import HIGH, LOW, MID, UNSPECIALIZED, store_rows


class KeyParts(NamedTuple):
    """What parts of a row's queries give, waiting to be joined."""

    key: Tensor
    """float32 (R, P, E, D), for the rows of summaries and text."""
    value: Tensor
    ds: Tensor | None
    """Sums over a block's gradients of logits, float32 (R, 3, blocks of cells, P); None without
    learned offsets."""


@triton.jit
def _within(place, start, length):
    """Which places lie in a segment; -1 as its start says that there is none."""
    return (start >= 0) & (place >= start) & (place < start + length)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def join_extra_grads_kernel(
    partial,
    grads,
    allocation,
    num_rows,
    num_text,
    cells,
    low_sums_at,
    mid_sums_at,
    high_sums_at,
    text_at,
    key_rows,
    region_at,
    region_rows,
    num_parts,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BRANCH: tl.constexpr,
):
    """ROWS gradients of summaries and text keys of one row, as the sums of their parts in order.

    Args:
        partial, grads: `KeyParts`, and `KeyGrads`, written.
        allocation: `Band` of every row, int32 (R,).
        low_sums_at, ..., num_parts: as in `extra_grads_kernel`.
    """
    # 64 bits from here on: parts of all rows may be more than 2^31 numbers.
    row = (tl.program_id(0) % num_rows).to(tl.int64)
    own = tl.program_id(0) // num_rows * ROWS + tl.arange(0, ROWS)
    band = tl.load(allocation + row)
    place = region_at + own
    # Only what a query of the row's band sees was written: other places hold anything.
    used = _within(place, text_at, num_text)
    # As in `_key_task`: the same rule says what was written and what is read.
    if (band == MID) | (band == HIGH):
        used |= _within(place, low_sums_at, cells)
    if (band == LOW) | (band == HIGH) | BRANCH:
        used |= _within(place, mid_sums_at, cells)
    if (band == LOW) | (band == MID) | BRANCH:
        used |= _within(place, high_sums_at, cells)
    # Scratch that nobody wrote may hold NaN, which no weight of 0 takes out: masks do.
    dk = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    dv = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    channel = tl.arange(0, HEAD_DIM)[None, :]
    # Their number is no constant: one kernel for every length of video. In order, so that the same
    # parts give the same bits.
    for part in range(num_parts):
        source = ((row * num_parts + part) * region_rows + own)[:, None] * HEAD_DIM + channel
        dk += tl.load(partial.key + source, mask=used[:, None], other=0.0)
        dv += tl.load(partial.value + source, mask=used[:, None], other=0.0)
    # Rows of the whole key buffer, of which earlier launches wrote exact and low tokens.
    target = row * key_rows + place
    # Rounded after the last part, once.
    store_rows(grads.key, target, dk, used, HEAD_DIM)
    store_rows(grads.value, target, dv, used, HEAD_DIM)

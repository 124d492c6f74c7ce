# Gluon reads these functions, and its decorators hide what they take: pyright can't follow.
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""The online softmax of one consumer's 64 queries, a block of keys at a time.

Logits are kept in base 2, see `forward.py`."""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from freqformer.ops.block_sparse.gluon.rings import CONSUMERS, hand_over, take_turn
from freqformer.ops.block_sparse.gluon.tasks import extra_at
from freqformer.ops.block_sparse.triton.blocks import tile_extent
from freqformer.ops.block_sparse.triton.softmax import MASKED
from freqformer.ops.block_sparse.triton.tasks import extra_ends, key_bias

LOWEST = gl.constexpr(-1e30)
"""The largest logit of a query that has seen no key: below every logit, and finite, so that
minus itself it is no NaN."""


class State(NamedTuple):
    """The online softmax of one consumer's queries, a step before its product with values."""

    acc: Any
    """Sums of weighted values, but for the last block of keys,"""
    p: Any
    """and the weights of that one, in 16 bits."""
    m_i: Any
    """Largest logit, in base 2."""
    l_i: Any
    """Sum of weights."""
    used: Any
    """Blocks of keys that this consumer has taken from the ring, of all tasks."""


@gluon.constexpr_function
def products_layout(width):
    """How a warp group's threads hold products of 64 rows and so many columns."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])


@gluon.jit
def start_logits(slot, used, rings, blocks):
    """Start the product of a consumer's queries and the block of keys that is next in the ring."""
    return warpgroup_mma(
        rings.query.blocks.index(slot),
        rings.key.blocks.index(used % blocks.STAGES).permute((1, 0)),
        gl.zeros(
            [blocks.BLOCK_Q // CONSUMERS, blocks.BLOCK_K],
            gl.float32,
            layout=products_layout(blocks.BLOCK_K),
        ),
        use_acc=False,
        is_async=True,
    )


@gluon.jit
def in_tile(logits, step, work, given, blocks):
    """Logits of a tile's tokens, -inf in columns that hold none: `mask_tile_end` of the Triton
    kernel, in this layout."""
    column = gl.arange(0, blocks.BLOCK_K, layout=gl.SliceLayout(0, logits.type.layout))
    if blocks.TILE_TOKENS != blocks.KEY_BLOCKS * blocks.BLOCK_K:
        tile = gl.load(work.seen.exact.tiles + step // blocks.KEY_BLOCKS)
        left = tile_extent(given.tiles, tile, blocks.TILE_TOKENS).count
        left -= step % blocks.KEY_BLOCKS * blocks.BLOCK_K
        # Columns below SAFE are masked in short tiles alone: the compiler drops the first mask
        # there.
        logits = gl.where(((column < blocks.SAFE) | (column < left))[None, :], logits, MASKED)
        if blocks.TILE_TOKENS == 0:
            if left < blocks.SAFE:
                logits = gl.where((column < left)[None, :], logits, MASKED)
    return logits


@gluon.jit
def in_extra(logits, step, work, given, scale, blocks):
    """Scaled logits of other keys: with their biases, -inf in columns that hold none.

    A logit is rounded once, with its bias, and the largest is subtracted exactly: its weight is 1.
    Of low tokens with outlier channels every weight is 0 or 1, and gradients cancel to 0.

    step: among those of such keys.
    """
    column = gl.arange(0, blocks.BLOCK_K, layout=gl.SliceLayout(0, logits.type.layout))
    ends = extra_ends(work.seen.extras, blocks)
    # The heads of a sample share a mask.
    text_mask = given.biases.text_mask
    if text_mask is not None:
        text_mask += work.task.row // given.num_heads * given.sizes.text
    bias = key_bias(
        extra_at(step, work, blocks),
        column,
        work.seen.extras.first_bias,
        text_mask,
        step < ends.first,
        step >= ends.high,
    )
    # As `scaled` of the Triton kernels, which round the logits of these keys in the backward.
    return gl.fma(
        logits,
        gl.full_like(logits, scale),
        gl.broadcast(bias[None, :], logits)[0],
    )


@gluon.jit
def first_step(
    logits, used, work, given, scale, blocks, narrow: gl.constexpr, EXTRAS: gl.constexpr
):
    """The state after a task's first block of keys."""
    of_acc: gl.constexpr = products_layout(blocks.HEAD_DIM)
    if not EXTRAS:
        logits = in_tile(logits, 0, work, given, blocks)
        m_i = gl.maximum(gl.max(logits, 1) * scale, LOWEST)
        weights = gl.exp2(logits * scale - m_i[:, None])
    else:
        if work.seen.exact.length > 0:
            logits = in_tile(logits, 0, work, given, blocks) * scale
        else:
            logits = in_extra(logits, 0, work, given, scale, blocks)
        m_i = gl.maximum(gl.max(logits, 1), LOWEST)
        weights = gl.exp2(logits - m_i[:, None])
    return State(
        acc=gl.zeros([blocks.BLOCK_Q // CONSUMERS, blocks.HEAD_DIM], gl.float32, layout=of_acc),
        p=gl.convert_layout(weights.to(narrow), gl.DotOperandLayout(0, of_acc, 2)),
        m_i=m_i,
        l_i=gl.sum(weights, 1),
        used=used + 1,
    )


@gluon.jit
def softmax_step(
    state,
    step,
    slot,
    work,
    given,
    rings,
    scale,
    blocks,
    CONSUMER: gl.constexpr,
    EXTRA: gl.constexpr,
):
    """Logits and weights of one more block of keys; the weights of the block before are multiplied
    with its values in the same turn at the matrix units."""
    of_acc: gl.constexpr = state.acc.type.layout
    of_weights: gl.constexpr = state.p.type.layout
    used = state.used
    stage = used % blocks.STAGES
    before = (used - 1) % blocks.STAGES
    mbarrier.wait(rings.key.full.index(stage), used // blocks.STAGES & 1)
    take_turn(CONSUMER)
    logits = start_logits(slot, used, rings, blocks)
    mbarrier.wait(rings.value.full.index(before), (used - 1) // blocks.STAGES & 1)
    acc = warpgroup_mma(state.p, rings.value.blocks.index(before), state.acc, is_async=True)
    hand_over(CONSUMER)
    logits = warpgroup_mma_wait(1, deps=(logits,))
    if EXTRA:
        extra = step - work.seen.exact.length
        logits = in_extra(logits, extra, work, given, scale, blocks)
        m_i = gl.maximum(state.m_i, gl.max(logits, 1))
        weights = gl.exp2(logits - m_i[:, None])
    else:
        logits = in_tile(logits, step, work, given, blocks)
        m_i = gl.maximum(state.m_i, gl.max(logits, 1) * scale)
        weights = gl.exp2(logits * scale - m_i[:, None])
    alpha = gl.exp2(state.m_i - m_i)
    l_i = state.l_i * alpha + gl.sum(weights, 1)
    p = gl.convert_layout(weights.to(rings.query.blocks.dtype), of_weights)
    # The compiler may take this wait before the exponentials, which need not wait. Holding it back
    # lost more than the overlap won: the other consumer fills the matrix units meanwhile.
    mbarrier.arrive(rings.key.empty.index(stage))
    acc, _, p = warpgroup_mma_wait(0, deps=(acc, state.p, p))
    mbarrier.arrive(rings.value.empty.index(before))
    acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, of_acc))[:, None]
    return State(acc=acc, p=p, m_i=m_i, l_i=l_i, used=used + 1)

# Gluon reads these functions, and its decorators hide what they take: pyright can't follow.
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""How warps that have one job each meet: blocks in shared memory that one fills and others use, and
turns at the matrix units."""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

fetch_block = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
"""The same under two names: Triton 3.9 has the first."""

CONSUMERS = gl.constexpr(2)

Q_STAGES = gl.constexpr(2)
"""Tasks whose queries shared memory holds: this one's, and the next one's."""


class Matrices(NamedTuple):
    """Descriptors of what is fetched: the rows of all heads, one head after the other."""

    query: Any
    key: Any
    value: Any


class Rings(NamedTuple):
    """Where it is fetched to."""

    query: Any
    key: Any
    value: Any


class Ring(NamedTuple):
    """Blocks in shared memory that are filled and used in turn, with their barriers."""

    blocks: Any
    full: Any
    empty: Any


@gluon.jit
def new_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """Barriers in shared memory, each of which waits for so many arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for number in gl.static_range(COUNT):
        mbarrier.init(barriers.index(number), count=ARRIVALS)
    return barriers


@gluon.jit
def new_ring(
    matrix,
    STAGES: gl.constexpr,
    ROWS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    USERS: gl.constexpr,
):
    """Room for blocks of a matrix, and their barriers: USERS consumers use each block."""
    blocks = gl.allocate_shared_memory(matrix.dtype, [STAGES, ROWS, HEAD_DIM], matrix.layout)
    full = new_barriers(STAGES, 1)
    empty = new_barriers(STAGES, USERS)
    return Ring(blocks=blocks, full=full, empty=empty)


@gluon.jit
def fetch(matrix, row, ring, stage, lap):
    """Have a block of rows brought into a stage, once it is free.

    A barrier's phase has one bit: waiting for the phase before the first returns at once, so that
    the first lap finds every stage empty.
    """
    mbarrier.wait(ring.empty.index(stage), lap ^ 1)
    mbarrier.expect(ring.full.index(stage), matrix.block_type.nbytes)
    fetch_block(matrix, [row, 0], ring.full.index(stage), ring.blocks.index(stage))


@gluon.jit
def fetch_both(one, other, row, ring, others, stage, lap):
    """Have blocks of two matrices brought into a stage, once it is free; they share the barriers of
    `ring`, and `others` is room for the second alone."""
    mbarrier.wait(ring.empty.index(stage), lap ^ 1)
    full = ring.full.index(stage)
    # One arrival and so many bytes fill the barrier: both copies report to it.
    mbarrier.expect(full, 2 * one.block_type.nbytes)
    fetch_block(one, [row, 0], full, ring.blocks.index(stage))
    fetch_block(other, [row, 0], full, others.index(stage))


@gluon.jit
def fetch_keys(row, matrices, rings, fetched, blocks):
    """Have a block of keys and their values brought."""
    stage = fetched % blocks.STAGES
    lap = fetched // blocks.STAGES & 1
    fetch(matrices.key, row, rings.key, stage, lap)
    fetch(matrices.value, row, rings.value, stage, lap)


@gluon.jit
def take_turn(CONSUMER: gl.constexpr):
    """Wait until the other consumer has handed over the matrix units: a barrier of the hardware
    that 128 threads wait at and 128 only arrive at."""
    gl.inline_asm_elementwise(
        "bar.sync 14, 256; mov.u32 $0, 0;" if CONSUMER == 0 else "bar.sync 15, 256; mov.u32 $0, 0;",
        "=r",
        [],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def hand_over(CONSUMER: gl.constexpr):
    """Let the other consumer have the matrix units."""
    gl.inline_asm_elementwise(
        "bar.arrive 15, 256; mov.u32 $0, 0;"
        if CONSUMER == 0
        else "bar.arrive 14, 256; mov.u32 $0, 0;",
        "=r",
        [],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )

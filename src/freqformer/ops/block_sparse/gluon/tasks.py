# Gluon reads these functions, and its decorators hide what they take: pyright can't follow.
# pyright: reportCallIssue=false, reportOperatorIssue=false, reportArgumentType=false
# pyright: reportAssignmentType=false, reportGeneralTypeIssues=false
"""Which blocks of queries a program works through, and which keys they see.

Every warp group of a program works this out for itself, from the same tables and by the Triton
kernel's own functions: Gluon compiles those, since they hold scalars only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from freqformer.ops.block_sparse.triton.tasks import extra_block, extra_ends, keys_seen, task_of


class Given(NamedTuple):
    """All that tasks are worked out from, put together in the kernel."""

    rows: Any
    """`Rows`, and so on by these names:"""
    tiles: Any
    lists: Any
    biases: Any
    sizes: Any
    segments: Any
    num_heads: Any
    key_rows: Any
    """Rows of one head in the key buffer."""
    text_parts: Any
    """Parts that the keys of a text query are dealt out to."""
    high_length: Any
    """Tiles of every window."""
    mid_length: Any
    """Places of every MID list."""


class Work(NamedTuple):
    """One block of queries."""

    task: Any
    """`Task`, and"""
    seen: Any
    """`Seen`, of the Triton kernel."""


@gluon.jit
def num_tasks(given, blocks):
    """Blocks of queries of all rows, those of rows without such queries too."""
    sizes = given.sizes
    per_row = sizes.tiles
    if blocks.TEXT:
        per_row += gl.cdiv(sizes.text, blocks.BLOCK_Q) * given.text_parts
    if blocks.LOWS:
        per_row += gl.cdiv(sizes.low, blocks.BLOCK_Q)
    return sizes.rows * per_row


@gluon.jit
def work_of(number, given, blocks):
    """The `Work` of a number below `num_tasks`."""
    task = task_of(number, given.rows, given.tiles, given.sizes, given.text_parts, blocks)
    seen = keys_seen(
        task,
        given.lists,
        given.biases,
        given.sizes,
        given.segments,
        given.high_length,
        given.mid_length,
        given.text_parts,
        blocks,
        blocks.TILE_TOKENS == blocks.BLOCK_K,
    )
    return Work(task=task, seen=seen)


@gluon.jit
def next_work(number, total, given, blocks):
    """The first work with queries, from this number on in the steps of a program, and its
    number."""
    # Behind the last number the last one's is read, which exists, and not used.
    work = work_of(gl.minimum(number, total - 1), given, blocks)
    if blocks.LOWS:
        # LOW rows have no video queries, and without a LOW branch the others have no low ones.
        # Which rows those are is known on the device only, so that the numbers count both.
        while (number < total) & (work.task.count <= 0):
            number += gl.num_programs(0)
            work = work_of(gl.minimum(number, total - 1), given, blocks)
    return number, work


@gluon.jit
def num_extras(work, blocks):
    """Blocks of keys that are not tiles."""
    return extra_ends(work.seen.extras, blocks).text


@gluon.jit
def extra_at(step, work, blocks):
    """The `ExtraBlock` of a number below `num_extras`; behind it one without keys."""
    extras = work.seen.extras
    return extra_block(step, extras, extra_ends(extras, blocks), work.seen.common, blocks)

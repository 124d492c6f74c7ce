"""Faults in the Gluon launch of the forward, which small calls on a Hopper GPU must catch.

Gluon has no interpreter, so that `tests.mutation.gluon` applies them on a machine with such a GPU.
They are of the kinds that such kernels really have: stages and phases of barriers mixed up, waits
and arrivals left out, descriptors exchanged, masks off by one, biases and scales left out, places
of results wrong. A kernel that never ends is caught too.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutation.faults import Fault

GLUON = "block_sparse/gluon/"
CHECKS = "tests/support/gluon_checks.py"


@dataclass(frozen=True)
class GluonFault(Fault):
    """One change to a file of the Gluon backend."""

    checks: tuple[str, ...]
    """Names in `gluon_checks.CHECKS`, of the smallest calls whose business it is."""


def gluon_fault(name: str, file: str, old: str, new: str, *checks: str) -> GluonFault:
    """A fault of `block_sparse/gluon/FILE.py`, the other fields as `GluonFault` has them."""
    return GluonFault(name, f"{GLUON}{file}.py", old, new, CHECKS, checks)


_FORWARD = (
    gluon_fault(
        "the second consumer gets the first one's queries",
        "forward",
        "            row = work.task.row * query_rows + work.task.start + consumer * HALF\n",
        "            row = work.task.row * query_rows + work.task.start\n",
        "windows",
    ),
    gluon_fault(
        "text queries see keys whose bands are weighed",
        "forward",
        "at = key_at + work.seen.exact_at + extent.start",
        "at = key_at + extent.start",
        "ragged",
    ),
    gluon_fault(
        "a list's tiles come a step late",
        "forward",
        "gl.minimum(step + 1, exact.length - 1)",
        "gl.minimum(step, exact.length - 1)",
        "windows",
    ),
    gluon_fault(
        "a task begins with the last tile of the one before",
        "forward",
        "        tile = first_tile\n",
        "",
        "windows",
    ),
    gluon_fault(
        "summaries and text are the first row's",
        "forward",
        "fetch_keys(key_at + at, matrices",
        "fetch_keys(at, matrices",
        "branch",
    ),
    gluon_fault(
        "keys and values exchanged",
        "forward",
        "key=key, value=value)",
        "key=value, value=key)",
        "windows",
    ),
    gluon_fault(
        "one block of summaries or text is left out",
        "forward",
        "range(gl.maximum(exact, 1), steps)",
        "range(gl.maximum(exact, 1) + 1, steps)",
        "branch",
    ),
    gluon_fault(
        "the first keys are not waited for",
        "forward",
        "    mbarrier.wait(rings.key.full.index(0), 0, pred=some)\n",
        "",
        "windows",
    ),
    gluon_fault(
        "the last values are waited for a lap too long",
        "forward",
        "mbarrier.wait(rings.value.full.index(before), (used - 1) // STAGES & 1)",
        "mbarrier.wait(rings.value.full.index(before), (used - 1) // STAGES & 1 ^ 1)",
        "windows",
    ),
    gluon_fault(
        "nobody says that the last values are done with",
        "forward",
        "        mbarrier.arrive(rings.value.empty.index(before))\n",
        "",
        "windows",
    ),
    gluon_fault(
        "results overwrite the next task's queries",
        "forward",
        "staged = rings.query.blocks.index(slot)",
        "staged = rings.query.blocks.index(next_slot)",
        "windows",
    ),
    gluon_fault(
        "the next task begins with this one's queries",
        "forward",
        "logits = start_logits(next_slot, used, rings, blocks)",
        "logits = start_logits(slot, used, rings, blocks)",
        "windows",
    ),
    gluon_fault(
        "the last values are those of the stage after",
        "forward",
        "acc = warpgroup_mma(state.p, rings.value.blocks.index(before), state.acc",
        "acc = warpgroup_mma(state.p, rings.value.blocks.index(stage), state.acc",
        "windows",
    ),
)
_SOFTMAX = (
    gluon_fault(
        "sums of weights aren't scaled with the maximum",
        "softmax",
        "state.l_i * alpha + gl.sum",
        "state.l_i + gl.sum",
        "windows",
    ),
    gluon_fault(
        "outputs so far aren't scaled with the maximum",
        "softmax",
        "acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, of_acc))[:, None]",
        "acc = acc * 1.0",
        "windows",
    ),
    gluon_fault(
        "a query sees one token behind a ragged tile",
        "softmax",
        "(column < blocks.SAFE) | (column < left)",
        "(column < blocks.SAFE) | (column <= left)",
        "windows",
    ),
    gluon_fault(
        "the shortest tiles aren't masked",
        "softmax",
        "if left < blocks.SAFE:",
        "if left < 0:",
        "ragged",
    ),
    gluon_fault(
        "biases are scaled like products",
        "softmax",
        "gl.broadcast(bias[None, :], logits)",
        "gl.broadcast((bias * scale)[None, :], logits)",
        "branch",
    ),
    gluon_fault(
        "the first sample's text mask for all",
        "softmax",
        "work.task.row // given.num_heads * given.sizes.text",
        "work.task.row // given.sizes.rows * given.sizes.text",
        "ragged",
    ),
    gluon_fault(
        "keys get the biases of the block after",
        "softmax",
        "extra = step - work.seen.exact.length\n",
        "extra = step - work.seen.exact.length + 1\n",
        "branch",
    ),
    gluon_fault(
        "keys of the stage after",
        "softmax",
        "rings.key.blocks.index(used % blocks.STAGES)",
        "rings.key.blocks.index((used + 1) % blocks.STAGES)",
        "windows",
    ),
    gluon_fault(
        "a consumer keeps the matrix units",
        "softmax",
        "    hand_over(CONSUMER)\n",
        "",
        "windows",
    ),
    gluon_fault(
        "the first block's weights without its biases",
        "softmax",
        "logits = in_extra(logits, 0, work, given, scale, blocks)",
        "logits = logits * scale",
        "ragged",
    ),
)
_RINGS = (
    gluon_fault(
        "barriers expect twice the bytes",
        "rings",
        "ring.full.index(stage), matrix.block_type.nbytes)",
        "ring.full.index(stage), 2 * matrix.block_type.nbytes)",
        "windows",
    ),
    gluon_fault(
        "both copies, and the bytes of one",
        "rings",
        "full, 2 * one.block_type.nbytes)",
        "full, one.block_type.nbytes)",
        "branch, gradients",
    ),
    gluon_fault(
        "a stage is filled while its keys are used",
        "rings",
        "    mbarrier.wait(ring.empty.index(stage), lap ^ 1)\n    mbarrier.expect(ring.full",
        "    mbarrier.expect(ring.full",
        "windows",
    ),
    gluon_fault(
        "a stage is waited for before it was ever used",
        "rings",
        "mbarrier.wait(ring.empty.index(stage), lap ^ 1)\n    full =",
        "mbarrier.wait(ring.empty.index(stage), lap)\n    full =",
        "branch, gradients",
    ),
    gluon_fault(
        "keys stand for values",
        "rings",
        "fetch(matrices.value, row, rings.value, stage, lap)",
        "fetch(matrices.key, row, rings.value, stage, lap)",
        "windows",
    ),
    gluon_fault(
        "one consumer frees a block for both",
        "rings",
        "empty = new_barriers(STAGES, USERS)",
        "empty = new_barriers(STAGES, 1)",
        "windows",
    ),
)
_TASKS = (
    gluon_fault(
        "tasks of low queries aren't counted",
        "tasks",
        "per_row += gl.cdiv(sizes.low, blocks.BLOCK_Q)",
        "per_row += 0",
        "all rows",
    ),
    gluon_fault(
        "text queries have one part",
        "tasks",
        "gl.cdiv(sizes.text, blocks.BLOCK_Q) * given.text_parts",
        "gl.cdiv(sizes.text, blocks.BLOCK_Q)",
        "all rows",
    ),
    gluon_fault(
        "the last task is the one before it",
        "tasks",
        "read, which exists, and not used.\n    work = work_of(gl.minimum(number, total - 1)",
        "read, which exists, and not used.\n    work = work_of(gl.minimum(number, total - 2)",
        "windows",
    ),
    gluon_fault(
        "other keys keep the bias that low tokens were spared",
        "tasks",
        "work.seen.common, blocks)",
        "0.0, blocks)",
        "branch",
    ),
)
_WRITING = (
    gluon_fault(
        "log-sum-exp without the bias of full tiles",
        "writing",
        "(state.m_i + work.seen.common + gl.log2(total))",
        "(state.m_i + gl.log2(total))",
        "branch",
    ),
    gluon_fault(
        "log-sum-exp to base 2", "writing", "gl.log2(total)) * LN_2", "gl.log2(total))", "windows"
    ),
    gluon_fault(
        "video tokens are written in tile order",
        "writing",
        "if start < given.sizes.video:",
        "if start < 0:",
        "ragged",
    ),
    gluon_fault(
        "outputs of the second sample's heads lie too far",
        "writing",
        "begin += task.row % given.num_heads",
        "begin += task.row",
        "ragged",
    ),
    gluon_fault(
        "low queries are written behind their place",
        "writing",
        "sizes.low - first_low\n",
        "sizes.low - sizes.video\n",
        "ragged",
    ),
    gluon_fault(
        "what rounding took has the other sign",
        "writing",
        "(acc - rounded.to(gl.float32))",
        "(rounded.to(gl.float32) - acc)",
        "branch",
    ),
    gluon_fault(
        "every part of a text query goes to one place",
        "writing",
        "(task.row * given.text_parts + task.part)",
        "(task.row * given.text_parts)",
        "ragged",
    ),
    gluon_fault(
        "padding overwrites the next head's channels",
        "writing",
        "if blocks.CHANNELS != blocks.HEAD_DIM:",
        "if blocks.CHANNELS > blocks.HEAD_DIM:",
        "branch",
    ),
    gluon_fault(
        "gradients are written over their first row",
        "writing",
        "(place + row)[:, None] * HEAD_DIM",
        "(place + 0 * row)[:, None] * HEAD_DIM",
        "branch, gradients",
    ),
)
_LAUNCH = (
    gluon_fault(
        "the scale of padded channels",
        "launch",
        "scale_of(plan.head_dim)",
        "scale_of(width)",
        "branch",
    ),
    gluon_fault(
        "masks leave out the last columns of equal short tiles",
        "launch",
        "SAFE=slots // 8 * 8",
        "SAFE=BLOCK",
        "windows",
    ),
    gluon_fault(
        "every tile is as long as the longest",
        "launch",
        "TILE_TOKENS=slots if tables.uniform else 0",
        "TILE_TOKENS=slots",
        "ragged",
    ),
    gluon_fault(
        "raster order for tile order",
        "launch",
        'if token_order == "raster" else None',
        'if token_order == "tile" else None',
        "ragged",
    ),
    gluon_fault(
        "keys and values exchanged by the host",
        "launch",
        "matrix_of(buffers.key, BLOCK),\n            matrix_of(buffers.value, BLOCK)",
        "matrix_of(buffers.value, BLOCK),\n            matrix_of(buffers.key, BLOCK)",
        "windows",
    ),
)
FORWARD_FAULTS = (*_FORWARD, *_SOFTMAX, *_RINGS, *_TASKS, *_WRITING, *_LAUNCH)

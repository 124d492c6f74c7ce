"""Faults that the tests must catch: one small change each to the GPU kernels or their host side.

They are of the kinds that such code really has: bounds and lengths off by one, strides, samples and
heads mixed up, terms of a gradient left out, padding and masks forgotten, rounding that is thrown
away. `tests.mutation` applies them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = "tests/ops/block_sparse/triton/test_launch.py"
BLOCK_BACKWARD = "tests/ops/block_sparse/triton/test_launch_backward.py"
PROLOGUE = "tests/ops/prologue/triton/test_launch.py"
SELECTION = "tests/ops/selection/triton/test_launch.py"
ROUTING = "tests/ops/routing/triton/test_launch.py"
MERGE = "tests/ops/merge/triton/test_launch.py"
MERGE_BACKWARD = "tests/ops/merge/triton/test_backward.py"
FUSED_BACKWARD = "tests/test_fused_backward.py"
FUSED_FORWARD = "tests/test_fused.py"


@dataclass(frozen=True)
class Fault:
    """One change to a file of the package."""

    name: str
    """What is wrong then."""
    file: str
    """Under src/freqformer/ops."""
    old: str
    """Occurs once in the file."""
    new: str
    tests: str
    """The smallest file of tests whose business it is."""

    @property
    def path(self) -> str:
        """From the top folder of the project."""
        return f"src/freqformer/ops/{self.file}"


ATTENTION = "block_sparse/triton/"
KERNEL = ATTENTION + "forward.py"
TASKS = ATTENTION + "tasks.py"
BLOCKS = ATTENTION + "blocks.py"
JOIN = ATTENTION + "join.py"
GATHER = ATTENTION + "bwd_gather.py"
QUERIES = ATTENTION + "bwd_dq.py"
KEYS = ATTENTION + "bwd_dkv.py"
EXTRAS = ATTENTION + "bwd_dsummary.py"
TILE_GRADS = "prologue/triton/backward_tile_kernel.py"
TOKEN_GRADS = "prologue/triton/backward_tokens.py"
POOL_GRADS = "prologue/triton/backward_pooling_kernel.py"
SUMMARIES = "prologue/triton/summary_kernel.py"
ROUTER = "routing/triton/forward.py"
KERNEL_FAULTS = (
    # attention, forward
    Fault(
        "a query sees one token behind a ragged tile",
        TASKS,
        "| (column < left)",
        "| (column <= left)",
        BLOCK,
    ),
    Fault("masked text is seen", TASKS, "seen &= visible != 0", "seen &= visible >= 0", BLOCK),
    Fault(
        "the first sample's text mask for all",
        KERNEL,
        "+= row // num_heads * num_text",
        "+= row // num_rows * num_text",
        BLOCK,
    ),
    Fault(
        "log-sum-exp without the bias of full tiles", KERNEL, "m_i + seen.common +", "m_i +", BLOCK
    ),
    Fault(
        "every tile has the first one's tokens",
        BLOCKS,
        "tl.load(tiles.counts + tile)",
        "tl.load(tiles.counts)",
        BLOCK,
    ),
    Fault(
        "lists of MID heads end one tile early",
        BLOCKS,
        "(lists.mid_lengths + entry)",
        "(lists.mid_lengths + entry) - 1",
        BLOCK,
    ),
    Fault(
        "low summaries take another head's offset",
        BLOCKS,
        "summary_offsets + row * 3",
        "summary_offsets + row",
        BLOCK,
    ),
    Fault(
        "outputs of the second sample land in the first",
        KERNEL,
        "to(tl.int64) * first_low * num_heads +",
        "to(tl.int64) * first_low +",
        BLOCK,
    ),
    Fault(
        "parts of text queries weighed to base 2",
        JOIN,
        "weight = tl.exp(tl.load",
        "weight = tl.exp2(tl.load",
        BLOCK,
    ),
    # attention, backward
    Fault(
        "slopes of keys without rowsum(out x grad)",
        KEYS,
        " - statistics.delta[None, :])",
        ")",
        BLOCK_BACKWARD,
    ),
    Fault(
        "slopes of queries without the keys' bias",
        QUERIES,
        "            logits += bias\n",
        "            pass\n",
        BLOCK_BACKWARD,
    ),
    Fault(
        "queries behind a tile's end count for its keys",
        GATHER,
        "tl.load(statistics.lse + place, mask=live, other=UNSEEN)",
        "tl.load(statistics.lse + place, mask=live, other=0.0)",
        BLOCK_BACKWARD,
    ),
    Fault(
        "a query that saw no key counts",
        GATHER,
        "tl.where(lse == MASKED, UNSEEN, lse)",
        "lse",
        BLOCK_BACKWARD,
    ),
    Fault(
        "what rounding took from the outputs is dropped",
        GATHER,
        "exact += tl.load(lost",
        "exact += 0.0 * tl.load(lost",
        BLOCK_BACKWARD,
    ),
    Fault(
        "transposed lists of HIGH heads short by one",
        KEYS,
        "tl.load(lists.high_starts + tile + 1) - begin)",
        "tl.load(lists.high_starts + tile + 1) - begin - 1)",
        BLOCK_BACKWARD,
    ),
    Fault(
        "transposed lists name wrong queries",
        "block_sparse/transposed.py",
        "entry // longest",
        "entry",
        BLOCK_BACKWARD,
    ),
    Fault(
        "LOW heads give mid summaries no gradient",
        EXTRAS,
        "seen = (band == LOW) | (band == HIGH)",
        "seen = band == HIGH",
        BLOCK_BACKWARD,
    ),
    Fault(
        "gradients of offsets go to other heads",
        ATTENTION + "backward_launches.py",
        ".flatten(3)",
        ".flatten(3).flip(1)",
        BLOCK_BACKWARD,
    ),
    # prologue
    Fault(
        "rotary embedding turns the other way",
        "prologue/triton/tokens.py",
        "even * turn.cos - odd * turn.sin, even * turn.sin + odd * turn.cos",
        "even * turn.cos + odd * turn.sin, odd * turn.cos - even * turn.sin",
        PROLOGUE,
    ),
    Fault(
        "zero rows begin one row late",
        "prologue/tables.py",
        "start + length for",
        "start + length + 1 for",
        PROLOGUE,
    ),
    Fault(
        "means of cells over the first cell's tokens",
        SUMMARIES,
        "tl.load(jobs.cell_counts + cell)",
        "tl.load(jobs.cell_counts)",
        PROLOGUE,
    ),
    Fault(
        "gradients aren't turned back",
        TOKEN_GRADS,
        "sin=-turn.sin",
        "sin=turn.sin",
        FUSED_BACKWARD,
    ),
    Fault(
        "the norm's gradient without its second term",
        TOKEN_GRADS,
        "(g - unit * (along / D)[:, None])",
        "g",
        FUSED_BACKWARD,
    ),
    Fault(
        "the high gain takes the mid band's gradient",
        TILE_GRADS,
        " - low_share - mid_share",
        " - low_share",
        FUSED_BACKWARD,
    ),
    Fault(
        "pooling's slopes without the pooled value",
        POOL_GRADS,
        "delta += tl.sum(tl.load(rows.value",
        "delta += 0.0 * tl.sum(tl.load(rows.value",
        FUSED_BACKWARD,
    ),
    Fault(
        "low summaries of HIGH heads give tokens no gradient",
        TILE_GRADS,
        "banded = (tile.band == MID) | (tile.band == HIGH)",
        "banded = tile.band == MID",
        FUSED_BACKWARD,
    ),
    Fault(
        "gradients of the two norms exchanged",
        "fused_operation.py",
        "prologue.query_norm,\n        prologue.key_norm,",
        "prologue.key_norm,\n        prologue.query_norm,",
        FUSED_BACKWARD,
    ),
    # merge
    Fault(
        "interpolation doesn't reach the next tile",
        "merge/tables.py",
        "min(first_low + m + 1, sum(samples))",
        "min(first_low + m, sum(samples))",
        MERGE,
    ),
    Fault(
        "the last token that a low token reaches gives nothing",
        "merge/backward_tables.py",
        "int(tokens.max()) + 1",
        "int(tokens.max())",
        MERGE_BACKWARD,
    ),
    # selection
    Fault(
        "a tile may be missing from its own list",
        "selection/triton/forward.py",
        "queries[:, None] == keys[None, :], float",
        "queries[:, None] < 0, float",
        SELECTION,
    ),
    Fault(
        "equal scores go to the higher tile",
        "selection/triton/forward.py",
        "tl.cumsum(level.to(tl.int32), 1) <=",
        "tl.cumsum(level.to(tl.int32), 1, reverse=True) <=",
        SELECTION,
    ),
    Fault(
        "sums over short tiles count as means",
        "selection/triton/forward.py",
        "scores = scores / _tile_counts(means.tile_offsets, keys, tiles)[None, :]",
        "scores = scores * 1.0",
        SELECTION,
    ),
    # float32
    Fault(
        "keys of float32 products are rounded to 16 bits",
        ATTENTION + "softmax.py",
        "tl.dot(rows.to(tl.float64), columns.to(tl.float64).T).to(tl.float32)",
        "tl.dot(rows.to(tl.float64), columns.to(tl.float16).to(tl.float64).T).to(tl.float32)",
        BLOCK_BACKWARD,
    ),
    Fault(
        "float32 weights of keys without the sum of their row",
        KEYS,
        "exp2(logits, True) * statistics.rounding_residual[None, :]",
        "exp2(logits, True)",
        BLOCK_BACKWARD,
    ),
    # router
    Fault(
        "a head scores as its neighbour",
        ROUTER,
        "network.embedding + head * EMBED",
        "network.embedding + (head + 1) % heads * EMBED",
        ROUTING,
    ),
    Fault(
        "the prior turns with the noise level",
        ROUTER,
        "(2 * t - 1) * scales.lean",
        "(1 - 2 * t) * scales.lean",
        ROUTING,
    ),
    Fault(
        "keys' energies land on queries'",
        ROUTER,
        "* VALUES + 3 * number)",
        "* VALUES + 0 * number)",
        ROUTING,
    ),
    Fault(
        "the timestep's weights eight columns off without statistics",
        ROUTER,
        "    first.weight, KNOWN, HIDDEN, STATIC",
        "    first.weight, 8, HIDDEN, STATIC",
        ROUTING,
    ),
    # LOW branch
    Fault(
        "LOW takes the own band's gate",
        "jit.py",
        "tl.load(by_token + entry + heads",
        "tl.load(by_token + entry",
        MERGE,
    ),
    Fault(
        "the first sample's gates for all",
        "jit.py",
        "entry = sample * 2 * heads",
        "entry = 0 * sample * 2 * heads",
        MERGE,
    ),
    Fault(
        "the own band's gradient from its gate alone",
        GATHER,
        "(1.0 + own_gate)",
        "own_gate",
        FUSED_BACKWARD,
    ),
    Fault(
        "low queries of LOW heads alone, with a branch too",
        TASKS,
        "        if not blocks.BRANCH:\n            # Which",
        "        if True:\n            # Which",
        FUSED_FORWARD,
    ),
    Fault(
        "a LOW branch gives its tokens no gradient",
        TILE_GRADS,
        "(tile.band == LOW) | blocks.BRANCH:",
        "tile.band == LOW:",
        FUSED_BACKWARD,
    ),
    # what blocks read behind a row's end
    Fault(
        "no zeros behind the gradients of low queries",
        GATHER,
        " | (empty & (place < query_rows))",
        "",
        FUSED_BACKWARD,
    ),
    Fault(
        "no zeros behind low queries",
        SUMMARIES,
        "count = sizes.video",
        "count = 0",
        FUSED_BACKWARD,
    ),
)


def digest(fault: Fault) -> str:
    """Of the file as it is, without the fault: another one where the code has changed."""
    return hashlib.sha256((ROOT / fault.path).read_bytes()).hexdigest()[:16]


def faulty(fault: Fault) -> str:
    """The file's text with the fault in it.

    Raises:
        ValueError: where the old text doesn't occur exactly once: the source has changed, and the
            fault must follow.
    """
    text = (ROOT / fault.path).read_text(encoding="utf-8")
    if text.count(fault.old) != 1 or fault.old == fault.new:
        raise ValueError(
            f"fault {fault.name!r}: {fault.old!r} occurs {text.count(fault.old)} times in "
            f"{fault.path}; once is allowed: "
            "write it anew for the source as it is"
        )
    return text.replace(fault.old, fault.new)

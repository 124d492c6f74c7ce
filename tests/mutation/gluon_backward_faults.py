"""Faults in the Gluon launches of the backward: as `gluon_faults.py`, which says how they are
applied."""

from __future__ import annotations

from tests.mutation.gluon_faults import gluon_fault

_QUERY_GRADS = (
    gluon_fault(
        "slopes of queries without rowsum(out x grad)",
        "bwd_dq",
        "(of_weights - queries.delta[:, None])",
        "of_weights",
        "windows, gradients",
    ),
    gluon_fault(
        "gradients of queries as of logits to base 2",
        "bwd_dq",
        "dq * (scale / LOG2_E)",
        "dq * scale",
        "windows, gradients",
    ),
    gluon_fault(
        "gradients of queries without biases",
        "bwd_dq",
        "logits = in_extra(logits, step, work, given, scale, blocks)",
        "logits = logits * scale",
        "branch, gradients",
    ),
    gluon_fault(
        "text queries' gradients by keys whose bands are weighed",
        "bwd_dq",
        "at += key_at + work.seen.exact_at + step",
        "at += key_at + step",
        "ragged, gradients",
    ),
    gluon_fault(
        "the second consumer's queries have the first one's statistics",
        "bwd_dq",
        "statistics.rows + task.start + CONSUMER * HALF",
        "statistics.rows + task.start",
        "windows, gradients",
    ),
    gluon_fault(
        "keys of a gradient are not waited for",
        "bwd_dq",
        "    mbarrier.wait(rings.key.full.index(stage), used // blocks.STAGES & 1)\n",
        "",
        "windows, gradients",
    ),
    gluon_fault(
        "a gradient's keys are never freed",
        "bwd_dq",
        "    mbarrier.arrive(rings.key.empty.index(stage))\n",
        "",
        "windows, gradients",
    ),
)
_KEY_GRADS = (
    gluon_fault(
        "slopes of keys without rowsum(out x grad)",
        "bwd_dkv",
        "less = none - delta[None, :]",
        "less = none + 0.0 * delta[None, :]",
        "branch, gradients",
    ),
    gluon_fault(
        "values take gradients from queries",
        "bwd_dkv",
        "warpgroup_mma(factor, grads, sums.value",
        "warpgroup_mma(factor, queries, sums.value",
        "branch, gradients",
    ),
    gluon_fault(
        "a query behind a ragged tile counts for its keys",
        "bwd_dkv",
        "live = column < extent.count",
        "live = column <= extent.count",
        "ragged, gradients",
    ),
    gluon_fault(
        "queries behind the text count for keys",
        "bwd_dkv",
        "count=given.num_text - skip)",
        "count=given.num_text)",
        "ragged, gradients",
    ),
    gluon_fault(
        "gradients of keys as of logits to base 2",
        "bwd_dkv",
        "sums.key * (scale / LOG2_E)",
        "sums.key * scale",
        "branch, gradients",
    ),
    gluon_fault(
        "both consumers take the first one's keys",
        "bwd_dkv",
        "slot = turn % KEY_STAGES * CONSUMERS + CONSUMER\n",
        "slot = turn % KEY_STAGES * CONSUMERS\n",
        "branch, gradients",
    ),
    gluon_fault(
        "exact keys of text queries get no gradient",
        "bwd_dkv",
        "        segments = 2\n",
        "        segments = 1\n",
        "ragged, gradients",
    ),
    gluon_fault(
        "statistics of a row begin where its queries do",
        "bwd_dkv",
        "place = row * given.statistics.rows + at",
        "place = row * given.query_rows + at",
        "branch, gradients",
    ),
)
_LAUNCH_BACKWARD = (
    gluon_fault(
        "queries and output gradients exchanged",
        "launch_backward",
        "matrix_of(self.buffers.query, half),\n            matrix_of(self.grad, half)",
        "matrix_of(self.grad, half),\n            matrix_of(self.buffers.query, half)",
        "windows, gradients",
    ),
    gluon_fault(
        "log-sum-exp and delta exchanged",
        "launch_backward",
        "_vector_of(self.statistics.lse),\n            _vector_of(self.statistics.delta)",
        "_vector_of(self.statistics.delta),\n            _vector_of(self.statistics.lse)",
        "branch, gradients",
    ),
    gluon_fault(
        "half of a tile's queries give gradients",
        "launch_backward",
        "QUERY_BLOCKS=BLOCK // QUERY_BLOCK",
        "QUERY_BLOCKS=1",
        "branch, gradients",
    ),
    gluon_fault(
        "queries' gradients by half of a tile's keys",
        "launch_backward",
        "KEY_BLOCKS=BLOCK // KEY_BLOCK",
        "KEY_BLOCKS=1",
        "windows, gradients",
    ),
    gluon_fault(
        "queries' gradients by keys behind equal short tiles",
        "launch_backward",
        "SAFE=triton_launch.safe_columns(slots, KEY_BLOCK)",
        "SAFE=KEY_BLOCK",
        "windows, gradients",
    ),
)
BACKWARD_FAULTS = (*_QUERY_GRADS, *_KEY_GRADS, *_LAUNCH_BACKWARD)

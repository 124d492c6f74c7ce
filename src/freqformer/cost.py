"""The record in which every operation states its cost, and the call that a cost is of.

`ops/NAME/cost.py` states the costs, in plain Python and without a kernel; launches size their
scratch memory by them, and the simulator counts by them.

Shape legend: N video tokens, X text tokens in the sequence, M low tokens, T tiles, C summary cells,
D head_dim, e bytes of an element.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from freqformer.bands import low_grid, low_samples
from freqformer.config import Band
from freqformer.plan import AttentionPlan

STATISTIC_BYTES = 4
"""Sums over tiles, scores, lists and log-sum-exps are 32 bits wide, whatever the features' type."""


@dataclass(frozen=True)
class Cost:
    """What one operation costs: all heads of a call, one sample."""

    flops: float
    """Useful: of tokens that exist, a multiply-add counted as two."""
    executed: float
    """What kernels compute: tokens rounded up to blocks, and what is computed again."""
    read_bytes: float
    """Every input once."""
    write_bytes: float
    launches: int

    @property
    def bytes(self) -> float:
        """Inputs read once and outputs written once."""
        return self.read_bytes + self.write_bytes

    @property
    def again(self) -> Cost:
        """The same work, none of it useful: a backward that computes the forward once more."""
        return Cost(0.0, self.executed, self.read_bytes, self.write_bytes, self.launches)

    @property
    def transposed(self) -> Cost:
        """The same products from outputs to inputs: what was read is written."""
        return Cost(self.flops, self.executed, self.write_bytes, self.read_bytes, self.launches)


NOTHING = Cost(0.0, 0.0, 0.0, 0.0, 0)
"""Of an operation that a call leaves out."""


@dataclass(frozen=True)
class QueryGroup:
    """Heads whose video queries attend as one band's do."""

    band: Band
    heads: int
    text: bool
    """Whether their text queries are here too; a head's are in one group alone."""


@dataclass(frozen=True)
class Call:
    """One call of the operation, as far as its cost depends on it; one sample."""

    plan: AttentionPlan
    heads: Mapping[Band, int]
    """How many heads each band has: all of the plan's, or those of one of several machines."""
    element_size: int = 2
    """Bytes of an element of query, key and value."""
    low_branch: bool = False
    """Whether every head adds a gated LOW branch to its own band. A LOW head's own band is that
    branch, and is computed once."""
    norm_across_heads: bool = False
    """Whether the norm of queries and keys is over all heads' channels, which takes launches of its
    own."""

    def count(self, *bands: Band) -> int:
        """Heads in these bands; without any, all."""
        return sum(self.heads.get(band, 0) for band in bands or Band)

    @property
    def video(self) -> int:
        """Video tokens, N."""
        return self.plan.layout.grid.num_tokens

    @property
    def tokens(self) -> int:
        """Video and text tokens, N + X."""
        return self.video + self.plan.num_text_tokens

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of one head."""
        return self.plan.head_dim * self.element_size

    @property
    def low_rows(self) -> int:
        """Heads with low tokens: LOW ones, and with a LOW branch every one."""
        return self.count() if self.low_branch else self.count(Band.LOW)

    @property
    def branched(self) -> int:
        """Heads with low tokens in addition to their own band's: none without a LOW branch."""
        return self.low_rows - self.count(Band.LOW)

    @property
    def groups(self) -> tuple[QueryGroup, ...]:
        """The queries of all heads by what they see; a LOW branch's come last."""
        own = tuple(QueryGroup(band, self.count(band), True) for band in Band if self.count(band))
        return own + ((QueryGroup(Band.LOW, self.branched, False),) if self.branched else ())

    def segments(self, band: Band) -> tuple[int, int, int, int, int]:
        """Keys that a head in `band` keeps in addition to exact video tokens, those of its LOW
        branch among them: low tokens, low, mid and high summaries, and text."""
        own = self.plan.extra_segments(band)
        if not self.low_branch:
            return own
        low = self.plan.extra_segments(Band.LOW)
        low_tokens, low_sums, mid, high, text = map(max, own, low)
        return (low_tokens, low_sums, mid, high, text)

    def summary_keys(self, band: Band) -> int:
        """Summary tokens that are made for a head in `band`."""
        return sum(self.segments(band)[1:4])


def dct_flops(plan: AttentionPlan) -> float:
    """FLOPs of the separable block DCT of one head's tokens."""
    layout = plan.layout
    squares = [sum(n * n for n in layout.extents(axis)) for axis in range(3)]
    pairs = sum(
        layout.grid.num_tokens * square / extent
        for square, extent in zip(squares, layout.grid.shape, strict=True)
    )
    return 2.0 * pairs * plan.head_dim


def compress_flops(plan: AttentionPlan) -> float:
    """FLOPs of the low tokens of one head's tokens, width first, then height, then time."""
    layout = plan.layout
    frames, rows, _ = layout.grid.shape
    _, low_rows, low_columns = low_grid(layout, plan.config)
    time, height, width = (_low_pairs(plan, axis) for axis in range(3))
    products = frames * rows * width + frames * low_columns * height + low_rows * low_columns * time
    return 2.0 * products * plan.head_dim


def _low_pairs(plan: AttentionPlan, axis: int) -> int:
    """Low samples times tokens along an axis, summed over the tiles: the sizes of the operation's
    own matrices."""
    samples = low_samples(plan.layout, plan.config, axis)
    return sum(low * n for low, n in zip(samples, plan.layout.extents(axis), strict=True))

"""What the prologue's kernels take, by name.

Shape legend: B batch, H heads, R = B * H rows (row = sample * H + head), N video and X text tokens,
M low tokens, S rows of the key buffer, T tiles, K classes of tiles, C cells, D head_dim, W
channels of a row of the buffers: D rounded up, zeros from D on; SLOTS and LOW_SLOTS tokens and low
tokens of a tile, rounded up. What is None is absent from the compiled
kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import triton.language as tl
from torch import Tensor


class Tokens(NamedTuple):
    """Queries, keys or values, (B, N + X, H, D), channels side by side."""

    base: Tensor
    sample: int
    """Numbers from one sample to the next, and so from one token and one head."""
    token: int
    head: int
    norm: Tensor | None
    """Weight of their RMS norm, (D,), or (H, D) across heads; None for no norm."""
    norm_head: int
    """Numbers from one head's weight to the next: 0 where heads share one."""
    scales: Tensor | None
    """float32 (B, N + X), one over the root mean square of all heads' channels; None where the norm
    is of each head's own."""
    FEATURES: tl.constexpr
    """How MID and HIGH rows weigh their bands: `FreqFormerConfig.band_features`, and "full" for
    queries and keys where only values are filtered."""
    KEEPS_EXACT: tl.constexpr
    """Whether text queries see every exact one, whatever the row's band."""
    ROTATED: tl.constexpr
    """Whether a rotary embedding would turn them: queries and keys."""
    HALF: tl.constexpr
    """Channels i and i + HALF are turned together. Then tokens are loaded so that these two are
    neighbours, in queries and keys alike, whose products don't ask for the order of channels. 0
    where neighbours are turned."""
    NORMS_TEXT: tl.constexpr
    """Whether the norm is of text too."""


class Qkv(NamedTuple):
    """What the call brought."""

    query: Tokens
    key: Tokens
    value: Tokens


class Allocation(NamedTuple):
    """The band of every head, integers (B, H) of any strides."""

    bands: Tensor
    sample: int
    """Numbers from one sample to the next, and so from one head."""
    head: int


class PreparedRows(NamedTuple):
    """What the prologue leaves for the launches after it."""

    query: Tensor
    """(R, N + X + M, W): video tokens in tile order, unless the row is LOW, then text, then low
    tokens of LOW rows, and of all with a LOW branch. So far as blocks of the queries before read
    on, what holds none is zero."""
    key: Tensor
    """(R, S, W), see `KeyLayout`."""
    value: Tensor
    sums: Tensor
    """float32 (3, R, T, W): sums over tiles of rotated queries, of rotated keys and of values with
    all bands; written in MID and HIGH rows, which alone need them. T is 0 where none does."""
    bands: Tensor
    """`Band` of every row, int32 (R,)."""
    order: Tensor
    """Rows by descending key blocks, int32 (R,)."""
    pool_lse: Tensor
    """Log-sum-exp of the pooling scores of every cell in the mid and high band, float32 (R, C, 2),
    which the backward reads; C is 0 without learned summaries, and rows hold anything for their own
    band."""
    scales: Tensor | None
    """float32 (2, B, N + X), one over the root mean square of all heads' channels of every query
    and key; None where no norm is across heads."""


class Tiles(NamedTuple):
    """The tiles of a plan, and the matrices of every class of them: see `PrologueTables`."""

    offsets: Tensor
    """int32 (T + 1,), first token of every tile in tile order, and N."""
    raster: Tensor | None
    """int32 (N,), raster place of every token in tile order; None where tokens are in tile
    order."""
    kind: Tensor
    """int32 (T,), class of every tile."""
    low_place: Tensor
    """int32 (T, LOW_SLOTS), low tokens of every tile, -1 after the last."""
    reduction: Tensor
    """(PARTS, K, LOW_SLOTS, SLOTS), summands of the analysis matrix over a last row of ones."""
    reduction_step: int
    """Numbers from one summand to the next."""
    projectors: Tensor | None
    """(PARTS, K, 3, SLOTS, SLOTS), summands of the matrices to the low, mid and high band; None
    where nothing needs them."""
    projector_step: int
    cell: Tensor | None = None
    """int32 (T,), cell of every tile, for the backward of summaries; None without them."""
    cell_counts: Tensor | None = None
    """int32 (C,), tokens of every cell."""


class RotaryTables(NamedTuple):
    """cos and sin of the rotary embedding in the order of the call, (B or 1, N or N + X, H or 1,
    P), P pairs of channels."""

    cos: Tensor
    sin: Tensor
    sample: int
    """Numbers from one sample to the next, 0 where they share tables; so by token, head and
    pair."""
    token: int
    head: int
    pair: int
    PAIRS: tl.constexpr
    """P; pairs after it stay as they are."""
    PLAIN: tl.constexpr
    """Whether all rows share tables that lie in one piece, of fewer numbers than an int32
    counts."""
    TURNS_TEXT: tl.constexpr
    """Whether text is turned too."""


class Rotary(NamedTuple):
    """cos and sin of the tokens that a program has loaded, float32 (places, W / 2)."""

    cos: tl.tensor
    sin: tl.tensor


class Learned(NamedTuple):
    """What is learned in addition to norms, and what goes with it."""

    rotary: RotaryTables | None
    gains: Tensor | None
    """float32 (H, 3)."""
    pooling: Tensor | None
    """(H, 2, D), pooling queries of the mid and high summaries."""
    eps: float
    """Added to the mean square of norms."""
    TURNS: tl.constexpr
    """Whether there is a rotary embedding. Triton 3.6 forgets the constants of a tuple in another
    one that has tensors and no constant of its own."""


class Segments(NamedTuple):
    """First row of every segment of the key buffer: see `KeyLayout`."""

    low: int
    low_summaries: int
    mid_summaries: int
    high_summaries: int
    text: int
    exact: int
    """0 where there is no such segment; the others are -1 then."""


class Sizes(NamedTuple):
    """What is known only at launch."""

    heads: int
    rows: int
    tokens: int
    """N + X."""
    video: int
    """N."""
    low: int
    """M."""
    query_rows: int
    """N + X + M, rows of the query buffer."""
    key_rows: int
    """S."""
    tiles: int
    cells: int
    segments: Segments


class Blocks(NamedTuple):
    """What kernels over tiles know at compile time, each a `tl.constexpr`."""

    SLOTS: tl.constexpr
    CHUNK: tl.constexpr
    """Tokens of a tile that a program holds at once."""
    LOW_SLOTS: tl.constexpr
    D: tl.constexpr
    W: tl.constexpr
    """D, rounded up: channels of a row of the buffers."""
    PARTS: tl.constexpr
    """Summands of a matrix: two 16-bit ones, or one of float32."""
    BRANCH: tl.constexpr
    """Whether every row has low tokens, for the LOW branch of its head."""
    SUMS: tl.constexpr
    """Whether sums over tiles are needed."""


class Common(NamedTuple):
    """What all kernels of the prologue take, forward and backward."""

    qkv: Qkv
    tiles: Tiles
    learned: Learned
    sizes: Sizes

    @property
    def num_text(self) -> int:
        return self.sizes.tokens - self.sizes.video

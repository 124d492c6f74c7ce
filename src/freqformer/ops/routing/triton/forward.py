"""The Triton kernels of the router: `launch.py` holds the host side.

Shape legend: B batch, N video tokens, H heads, D head_dim, S sampled tiles, K kinds of tiles, SLOTS
tokens of the largest tile and W channels, D, rounded up to powers of two.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from freqformer.ops.jit import INTERPRETED, dot, load_vector, norm_tokens

VALUES = tl.constexpr(9)
"""Of every sampled tile and head: energies of three bands for queries and for keys, and what
roughness is made of."""


class Features(NamedTuple):
    """Queries, keys or the layer's input, (B, N, H, D), channels side by side."""

    base: Tensor
    sample: int
    """Numbers from one sample to the next, and so from one token and one head."""
    token: int
    head: int


class Sample(NamedTuple):
    """The sampled tiles, and the DCT of every kind of them."""

    places: Tensor
    """int32 (S, SLOTS), tokens of a tile; after its last the first one follows."""
    kind: Tensor
    """int32 (S,)."""
    weights: Tensor
    """float32 (K, 6, SLOTS), of a tile's power: three bands, and three parts of roughness."""
    token_transform: Tensor
    """(K, SLOTS, SLOTS) in the dtype of queries and keys, zero outside a tile's tokens."""
    input_transform: Tensor
    """The same in the dtype of the layer's input."""


class Norms(NamedTuple):
    """Weights of the RMS norm of queries and keys, (D,), None for no norm."""

    query: Tensor | None
    key: Tensor | None
    eps: float


@triton.jit
def _sum_power(
    x,
    sample,
    head,
    place,
    norm,
    eps,
    transform,
    weights,
    target,
    step,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
):
    """Three weighted sums of the power of a tile's DCT coefficients, mean over channels.

    Args:
        x, sample, head, place: `Features`, and which of them: places of the tile's tokens (SLOTS,).
        norm, eps: weight of their RMS norm, (D,) or None.
        transform: DCT of the tile's kind, (SLOTS, SLOTS) in the tokens' dtype.
        weights: float32 (3, SLOTS).
        target, step: where the first sum goes, and how far from it the next one.
    """
    slot = tl.arange(0, SLOTS)
    row = tl.arange(0, 4)
    base = x.base + sample * x.sample + head.to(tl.int64) * x.head
    # All loads are under way before one is used. Tokens are read once: they leave the L1 cache to
    # the transform. No token is masked: after a tile's last one its first is read again, and the
    # transform's zeros take it out.
    channel = tl.arange(0, W)[None, :]
    at = base + place.to(tl.int64)[:, None] * x.token + channel
    if D != W:
        tokens = tl.load(at, mask=channel < D, other=0.0, cache_modifier=".cg")
    else:
        tokens = tl.load(at, cache_modifier=".cg")
    matrix = tl.load(transform + slot[:, None] * SLOTS + slot[None, :])
    # Blocks are powers of two: the fourth row of three is masked.
    weight = tl.load(
        weights + row[:, None] * SLOTS + slot[None, :], mask=(row < 3)[:, None], other=0.0
    )
    if norm is not None:
        tokens = norm_tokens(tokens, norm, eps, D)
    # One matrix for all three axes of the tile: (SLOTS, SLOTS) @ (SLOTS, W), the channels each by
    # itself.
    coefficients = tl.zeros(tokens.shape, tl.float32)
    if INTERPRETED or tokens.dtype != tl.float32:
        coefficients = dot(matrix, tokens, coefficients)
    else:
        # A float32 product this large is too much code without tensor cores.
        # Three bfloat16 numbers hold a float32's 24 bits; six of their nine products matter.
        coefficients = tl.dot(matrix, tokens, coefficients, input_precision="bf16x6")
    power = tl.sum(coefficients * coefficients, 1) / D
    # Each value's numbers lie together, over heads and tiles: the next launch reads one run for a
    # value, and shares of all heads at once.
    tl.store(target + row * step, tl.sum(weight * power[None, :], 1), mask=row < 3)


@triton.jit
def sum_tiles(
    query,
    key,
    hidden,
    norms,
    tiles,
    sums,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
):
    """Weighted sums of the power of one sampled tile of one head of queries, keys or input.

    Launched over heads, sampled tiles and 3 * B: so many small programs that loads of some hide
    behind products of others.

    Args:
        query, key, hidden: `Features`.
        norms, tiles: `Norms`, `Sample`.
        sums: float32 (B, 9, H, S).
    """
    # The first axis runs fastest: programs side by side read neighbouring heads of the same tokens.
    head = tl.program_id(0)
    tile = tl.program_id(1)
    number = tl.program_id(2) % 3
    sample = (tl.program_id(2) // 3).to(tl.int64)
    step = tl.num_programs(0) * tl.num_programs(1)
    target = sums + (sample * VALUES + 3 * number) * step + head * tl.num_programs(1) + tile
    place = tl.load(tiles.places + tile * SLOTS + tl.arange(0, SLOTS))
    # Tiles of one shape share a transform, which so stays in the cache.
    kind = tl.load(tiles.kind + tile)
    matrix = kind * SLOTS * SLOTS
    weights = tiles.weights + kind * 6 * SLOTS
    # One copy of the code for each: their dtypes may differ.
    if number == 0:
        _sum_power(
            query,
            sample,
            head,
            place,
            norms.query,
            norms.eps,
            tiles.token_transform + matrix,
            weights,
            target,
            step,
            SLOTS,
            D,
            W,
        )
    elif number == 1:
        _sum_power(
            key,
            sample,
            head,
            place,
            norms.key,
            norms.eps,
            tiles.token_transform + matrix,
            weights,
            target,
            step,
            SLOTS,
            D,
            W,
        )
    else:
        # The input has no norm, and its three sums are those that roughness is made of.
        _sum_power(
            hidden,
            sample,
            head,
            place,
            None,
            norms.eps,
            tiles.input_transform + matrix,
            weights + 3 * SLOTS,
            target,
            step,
            SLOTS,
            D,
            W,
        )


class Layer(NamedTuple):
    """One linear layer: weight (outputs, inputs) and bias (outputs,)."""

    weight: Tensor
    bias: Tensor


class Network(NamedTuple):
    """The routing network, in any float dtype, each tensor in one piece."""

    first: Layer
    second: Layer
    last: Layer
    embedding: Tensor
    """(H, EMBEDDING)."""
    head_bias: Tensor
    """(H, 3)."""


class Timesteps(NamedTuple):
    """(B,), any stride: 0 where one timestep stands for all samples."""

    base: Tensor
    stride: int


class Scales(NamedTuple):
    """Constants of statistics, network and prior."""

    floor: float
    """Added to energies and to the variance."""
    statistic: float
    """That statistics are multiplied by."""
    fastest: float
    """Angular frequency of the timestep's fastest sinusoid."""
    fall: float
    """Its logarithm falls by this from one sinusoid to the next."""
    lean: float
    """Logits that the prior adds at most."""


class Scores(NamedTuple):
    """What is written, and which logits are written twice."""

    logits: Tensor
    """float32 (B, H, 3)."""
    bands: Tensor
    """int64 (B, H), the first of the largest."""
    own: Tensor | None
    """Own bands of a layer whose branches are weighed, int64 (H,)."""
    branches: Tensor | None
    """Logits of the own bands and of LOW, float32 (B, 2, H)."""


@triton.jit
def _load_matrix(
    source, first, outputs, inputs, WIDTH: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr
):
    """`inputs` columns of a linear layer's weight (outputs, WIDTH) from `first` on: float32 (OUT,
    IN), zero beyond."""
    row = tl.arange(0, OUT)[:, None]
    column = tl.arange(0, IN)[None, :]
    known = (row < outputs) & (column < inputs)
    # Whatever dtype the network has, its few sums are float32.
    return tl.load(source + row * WIDTH + first + column, mask=known, other=0.0).to(tl.float32)


@triton.jit
def _silu(x):
    # Far below 0 the exponential is inf, and x / inf is the right limit.
    return x / (1 + tl.exp(-x))


@triton.jit
def _statistics(energies, shares, heads, floor, scale):
    """The network's scaled statistics, (8,), of energies (8, TILES) and the input's shares (4,
    ROWS)."""
    # A share is the mean over a head's channels, and heads have equally many.
    rough = tl.sum(shares, 1) / heads
    part = tl.arange(0, 4)
    # One number of a block is taken out by a sum over a mask: the block lies in registers of many
    # threads, and has no address.
    variance = tl.sum(tl.where(part == 2, rough, 0.0), 0) + floor
    time = tl.sum(tl.where(part == 0, rough, 0.0), 0) / variance
    space = tl.sum(tl.where(part == 1, rough, 0.0), 0) / variance
    value = tl.arange(0, 8)
    roughness = tl.where(value == 6, time, space)
    # A still or flat tile has no energy: the floor keeps its logarithm finite. Of rows 6 and 7 both
    # sides are computed, and `where` drops the logarithm.
    return tl.where(value < 6, tl.log(tl.sum(energies, 1) + floor), roughness) * scale


@triton.jit
def score_heads(
    sums,
    timesteps,
    network,
    scores,
    scales,
    tiles,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    KNOWN: tl.constexpr,
    HIDDEN: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    TIME: tl.constexpr,
    EMBEDDING: tl.constexpr,
    STATIC_BLOCK: tl.constexpr,
):
    """Statistics, routing network, prior and choice of one head of one sample; launched over heads
    and B.

    One program follows the other's result and has little to do, so its time is latency: all loads
    come first, and as few instructions as can be, since each is fetched from memory and runs once.
    Products with a vector are sums over a block: tensor cores would want 16 vectors.

    Args:
        sums: of `sum_tiles`, (B, 9, H, S); not read where KNOWN is 0.
        timesteps, network, scales: `Timesteps`, `Network`, `Scales`.
        scores: `Scores`, written.
        tiles: S.
        TILES, ROWS: S and S * H, rounded up.
        KNOWN: 8 statistics, or 0 where the network is given none.
        HIDDEN, TIME, EMBEDDING: widths of the hidden layers, and of the first one's further inputs.
        HIDDEN_BLOCK, STATIC_BLOCK: HIDDEN and TIME + EMBEDDING, rounded up.
    """
    head = tl.program_id(0)
    heads = tl.num_programs(0)
    sample = tl.program_id(1)
    STATIC: tl.constexpr = TIME + EMBEDDING
    INPUTS: tl.constexpr = KNOWN + STATIC
    first = network.first
    if KNOWN:
        step = heads * tiles
        start = sums + sample.to(tl.int64) * VALUES * step
        # Six energies of this head, two rows of zeros after them: (8, TILES).
        value = tl.arange(0, 8)[:, None]
        tile = tl.arange(0, TILES)[None, :]
        entry = start + value * step + head * tiles + tile
        energies = tl.load(entry, mask=(value < 6) & (tile < tiles), other=0.0)
        # Every head holds a share of the input's channels: (4, ROWS), the last row zero.
        part = tl.arange(0, 4)[:, None]
        row = tl.arange(0, ROWS)[None, :]
        shares = tl.load(start + (6 + part) * step + row, mask=(part < 3) & (row < step), other=0.0)
        # The first layer's columns fall into two blocks, so that the statistics' product, the only
        # one that waits for the other launch's sums, stands alone.
        known_weight = _load_matrix(first.weight, 0, HIDDEN, KNOWN, INPUTS, HIDDEN_BLOCK, KNOWN)
    t = tl.load(timesteps.base + sample * timesteps.stride).to(tl.float32)
    # The input's other part, (STATIC_BLOCK,): TIME sinusoids, then the head's embedding.
    place = tl.arange(0, STATIC_BLOCK)
    # `place - TIME` is below 0 where the sinusoids stand: masked lanes read nothing there.
    embedding = tl.load(
        network.embedding + head * EMBEDDING + place - TIME,
        mask=(place >= TIME) & (place < STATIC),
        other=0.0,
    )
    static_weight = _load_matrix(
        first.weight, KNOWN, HIDDEN, STATIC, INPUTS, HIDDEN_BLOCK, STATIC_BLOCK
    )
    first_bias = load_vector(first.bias, HIDDEN, HIDDEN_BLOCK)
    second_weight = _load_matrix(
        network.second.weight, 0, HIDDEN, HIDDEN, HIDDEN, HIDDEN_BLOCK, HIDDEN_BLOCK
    )
    second_bias = load_vector(network.second.bias, HIDDEN, HIDDEN_BLOCK)
    last_weight = _load_matrix(network.last.weight, 0, 3, HIDDEN, HIDDEN, 4, HIDDEN_BLOCK)
    last_bias = load_vector(network.last.bias, 3, 4)
    last_bias += load_vector(network.head_bias + head * 3, 3, 4)

    # Frequencies fall geometrically, the same ones for cosines and sines.
    angle = t * scales.fastest * tl.exp(-scales.fall * (place % (TIME // 2)).to(tl.float32))
    # The second half are sines, written as cosines.
    wave = tl.cos(tl.where(place < TIME // 2, angle, angle - 1.5707963267948966))
    static = tl.where(place < TIME, wave, embedding.to(tl.float32))
    # What is known without the other launch goes first, while its sums are on their way.
    x = first_bias + tl.sum(static_weight * static[None, :], 1)

    if KNOWN:
        known = _statistics(energies, shares, heads, scales.floor, scales.statistic)
        x += tl.sum(known_weight * known[None, :], 1)
    # Hidden numbers after HIDDEN stay zero: so are their weights and biases, and silu(0).
    x = _silu(x)
    x = _silu(second_bias + tl.sum(second_weight * x[None, :], 1))
    logits = last_bias + tl.sum(last_weight * x[None, :], 1)
    band = tl.arange(0, 4)
    # The prior: 1, 0 and -1 times the same number for LOW, MID and HIGH.
    logits += (2 * t - 1) * scales.lean * (1 - band).to(tl.float32)
    result = sample * heads + head
    tl.store(scores.logits + result * 3 + band, logits, mask=band < 3)
    # The fourth logit is padding, and could be the largest. Ties go to the lower band.
    best = tl.argmax(tl.where(band < 3, logits, float("-inf")), 0)
    tl.store(scores.bands + result, best.to(tl.int64))
    if scores.branches is not None:
        own = tl.load(scores.own + head)
        # (B, 2, H): own band, then LOW. `band == own` picks a number out of registers, by a sum.
        pair = scores.branches + 2 * sample * heads + head
        tl.store(pair, tl.sum(tl.where(band == own, logits, 0.0), 0))
        tl.store(pair + heads, tl.sum(tl.where(band == 0, logits, 0.0), 0))

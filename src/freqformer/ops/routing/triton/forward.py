"""The Triton kernels of the router: `launch.py` holds the host side.

Shape legend: B batch, H heads, S sampled tiles, K kinds of tiles, SLOTS tokens of the largest tile,
D head_dim.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import INTERPRETED, dot, norm_tokens

VALUES = tl.constexpr(9)
"""Of every sampled tile and head: energies of three bands for queries and for keys, and what
roughness is made of."""


@triton.jit
def _sum_power(
    tokens,
    stride,
    place,
    norm,
    eps,
    transform,
    weights,
    target,
    step,
    SLOTS: tl.constexpr,
    D: tl.constexpr,
):
    """Three weighted sums of the power of a tile's DCT coefficients, mean over channels, to
    `target`, `step` apart.

    Args:
        tokens, stride, place: the tile's tokens at `tokens + place * stride`, (SLOTS, D).
        norm: weight of their RMS norm, (D,) or None.
        transform: DCT of the tile's kind, (SLOTS, SLOTS) in the tokens' dtype.
        weights: float32 (3, SLOTS).
    """
    slot, row = tl.arange(0, SLOTS), tl.arange(0, 4)
    # All loads are under way before one is used. Tokens are read once: they leave the L1 cache to
    # the transform.
    at = tokens + place.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]
    x = tl.load(at, cache_modifier=".cg")
    matrix = tl.load(transform + slot[:, None] * SLOTS + slot[None, :])
    weight = tl.load(
        weights + row[:, None] * SLOTS + slot[None, :], mask=(row < 3)[:, None], other=0.0
    )
    if norm is not None:
        x = norm_tokens(x, norm, eps, D)
    coefficients = tl.zeros(x.shape, tl.float32)
    if INTERPRETED or x.dtype != tl.float32:
        coefficients = dot(matrix, x, coefficients)
    else:
        # A float32 product this large is too much code without tensor cores.
        coefficients = tl.dot(matrix, x, coefficients, input_precision="bf16x6")
    power = tl.sum(coefficients * coefficients, 1) / D
    tl.store(target + row * step, tl.sum(weight * power[None, :], 1), mask=row < 3)


@triton.jit
def sum_tiles(
    features, strides, norms, transforms, tables, sums, eps, SLOTS: tl.constexpr, D: tl.constexpr
):
    """Weighted sums of the power of one sampled tile of one head of queries, keys or input.

    Launched over heads, sampled tiles and 3 * B: so many small programs that loads of some hide
    behind products of others.

    Args:
        features, strides: query, key and the layer's input, each (B, N, H, D), three strides each.
        norms: weights of the RMS norm of queries and keys, (D,) or None.
        transforms: DCT of every kind of tile (K, SLOTS, SLOTS) in the dtype of queries and keys,
            and of the input.
        tables: places int32 (S, SLOTS), kind int32 (S,), weights float32 (K, 6, SLOTS).
        sums: float32 (B, 9, H, S).
    """
    head, tile = tl.program_id(0), tl.program_id(1)
    number, sample = tl.program_id(2) % 3, (tl.program_id(2) // 3).to(tl.int64)
    step = tl.num_programs(0) * tl.num_programs(1)
    target = sums + (sample * VALUES + 3 * number) * step + head * tl.num_programs(1) + tile
    place = tl.load(tables[0] + tile * SLOTS + tl.arange(0, SLOTS))
    kind = tl.load(tables[1] + tile)
    matrix, weights = kind * SLOTS * SLOTS, tables[2] + kind * 6 * SLOTS
    # One copy of the code for each: their dtypes may differ.
    if number == 0:
        query = features[0] + sample * strides[0][0] + head.to(tl.int64) * strides[0][2]
        _sum_power(
            query,
            strides[0][1],
            place,
            norms[0],
            eps,
            transforms[0] + matrix,
            weights,
            target,
            step,
            SLOTS,
            D,
        )
    elif number == 1:
        key = features[1] + sample * strides[1][0] + head.to(tl.int64) * strides[1][2]
        _sum_power(
            key,
            strides[1][1],
            place,
            norms[1],
            eps,
            transforms[0] + matrix,
            weights,
            target,
            step,
            SLOTS,
            D,
        )
    else:
        hidden = features[2] + sample * strides[2][0] + head.to(tl.int64) * strides[2][2]
        weights += 3 * SLOTS
        _sum_power(
            hidden,
            strides[2][1],
            place,
            None,
            eps,
            transforms[1] + matrix,
            weights,
            target,
            step,
            SLOTS,
            D,
        )


@triton.jit
def _load_matrix(
    source, first, outputs, inputs, WIDTH: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr
):
    """`inputs` columns of a linear layer's weight (outputs, WIDTH) from `first` on: float32 (OUT,
    IN), zero beyond."""
    row, column = tl.arange(0, OUT)[:, None], tl.arange(0, IN)[None, :]
    known = (row < outputs) & (column < inputs)
    return tl.load(source + row * WIDTH + first + column, mask=known, other=0.0).to(tl.float32)


@triton.jit
def _load_vector(source, size, WIDTH: tl.constexpr):
    """float32 (WIDTH,), zero behind `size`."""
    place = tl.arange(0, WIDTH)
    return tl.load(source + place, mask=place < size, other=0.0).to(tl.float32)


@triton.jit
def _silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def _statistics(energies, shares, heads, floor, scale):
    """The network's scaled statistics, (8,), of energies (8, TILES) and the input's shares (4,
    ROWS)."""
    rough = tl.sum(shares, 1) / heads
    part = tl.arange(0, 4)
    variance = tl.sum(tl.where(part == 2, rough, 0.0), 0) + floor
    time = tl.sum(tl.where(part == 0, rough, 0.0), 0) / variance
    space = tl.sum(tl.where(part == 1, rough, 0.0), 0) / variance
    value = tl.arange(0, 8)
    roughness = tl.where(value == 6, time, space)
    return tl.where(value < 6, tl.log(tl.sum(energies, 1) + floor), roughness) * scale


@triton.jit
def score_heads(
    sums,
    timestep,
    timestep_stride,
    layers,
    own,
    logits,
    bands,
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

    Args:
        sums: of `sum_tiles`, (B, 9, H, S); not read where KNOWN is 0.
        timestep: (B,) with its stride.
        layers: weight and bias of the three linear layers.
        own: embedding (H, EMBEDDING) and bias (H, 3) of the heads.
        logits, bands: float32 and int64 (B, H, 3) and (B, H).
        scales: floor of energies and variance, scale of statistics, the timestep's fastest angular
            frequency, the log of the range of frequencies over half of TIME, and the prior's
            strength.
        tiles: S.
        KNOWN: 8 statistics, or 0 where the network is given none.
    """
    floor, scale, fastest, fall, lean = scales
    head, heads, sample = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    STATIC: tl.constexpr = TIME + EMBEDDING
    INPUTS: tl.constexpr = KNOWN + STATIC
    if KNOWN:
        step = heads * tiles
        start = sums + sample.to(tl.int64) * VALUES * step
        value, tile = tl.arange(0, 8)[:, None], tl.arange(0, TILES)[None, :]
        entry = start + value * step + head * tiles + tile
        energies = tl.load(entry, mask=(value < 6) & (tile < tiles), other=0.0)
        # Every head holds a share of the input's channels.
        part, row = tl.arange(0, 4)[:, None], tl.arange(0, ROWS)[None, :]
        shares = tl.load(start + (6 + part) * step + row, mask=(part < 3) & (row < step), other=0.0)
        known_weight = _load_matrix(layers[0][0], 0, HIDDEN, KNOWN, INPUTS, HIDDEN_BLOCK, KNOWN)
    t = tl.load(timestep + sample * timestep_stride).to(tl.float32)
    place = tl.arange(0, STATIC_BLOCK)
    embedding = tl.load(
        own[0] + head * EMBEDDING + place - TIME, mask=(place >= TIME) & (place < STATIC), other=0.0
    )
    static_weight = _load_matrix(
        layers[0][0], KNOWN, HIDDEN, STATIC, INPUTS, HIDDEN_BLOCK, STATIC_BLOCK
    )
    first_bias = _load_vector(layers[0][1], HIDDEN, HIDDEN_BLOCK)
    second_weight = _load_matrix(
        layers[1][0], 0, HIDDEN, HIDDEN, HIDDEN, HIDDEN_BLOCK, HIDDEN_BLOCK
    )
    second_bias = _load_vector(layers[1][1], HIDDEN, HIDDEN_BLOCK)
    last_weight = _load_matrix(layers[2][0], 0, 3, HIDDEN, HIDDEN, 4, HIDDEN_BLOCK)
    last_bias = _load_vector(layers[2][1], 3, 4) + _load_vector(own[1] + head * 3, 3, 4)

    angle = t * fastest * tl.exp(-fall * (place % (TIME // 2)).to(tl.float32))
    # The second half are sines, written as cosines.
    wave = tl.cos(tl.where(place < TIME // 2, angle, angle - 1.5707963267948966))
    static = tl.where(place < TIME, wave, embedding.to(tl.float32))
    x = first_bias + tl.sum(static_weight * static[None, :], 1)

    if KNOWN:
        x += tl.sum(known_weight * _statistics(energies, shares, heads, floor, scale)[None, :], 1)
    x = _silu(x)
    x = _silu(second_bias + tl.sum(second_weight * x[None, :], 1))
    scores = last_bias + tl.sum(last_weight * x[None, :], 1)
    band = tl.arange(0, 4)
    scores += (2 * t - 1) * lean * (1 - band).to(tl.float32)
    result = sample * heads + head
    tl.store(logits + result * 3 + band, scores, mask=band < 3)
    tl.store(bands + result, tl.argmax(tl.where(band < 3, scores, float("-inf")), 0).to(tl.int64))

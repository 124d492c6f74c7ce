"""The Triton kernels of the router: `triton.py` holds the host side.

Shape legend: B batch, H heads, S sampled tiles, K kinds of tiles, SLOTS tokens of the largest tile, D head_dim.
"""

from __future__ import annotations

import triton
import triton.language as tl

from freqformer.ops.jit import INTERPRETED, dot, load_tokens, norm_tokens

VALUES = tl.constexpr(9)
"""Of every sampled tile and head: energies of three bands for queries and for keys, and what roughness is made of."""


@triton.jit
def _sum_power(x, transform, weights, target, SLOTS: tl.constexpr):
    """Three weighted sums of the power of a tile's DCT coefficients, mean over channels, to `target`.

    Args:
        x: tokens of the tile (SLOTS, D).
        transform: DCT of its kind, (SLOTS, SLOTS) in x's dtype.
        weights: float32 (3, SLOTS).
    """
    slot = tl.arange(0, SLOTS)
    matrix = tl.load(transform + slot[:, None] * SLOTS + slot[None, :])
    coefficients = tl.zeros(x.shape, tl.float32)
    if INTERPRETED or x.dtype != tl.float32:
        coefficients = dot(matrix, x, coefficients)
    else:
        # A float32 product this large is too much code without tensor cores.
        coefficients = tl.dot(matrix, x, coefficients, input_precision="bf16x6")
    power = tl.sum(coefficients * coefficients, 1) / x.shape[1]
    row = tl.arange(0, 4)
    weight = tl.load(weights + row[:, None] * SLOTS + slot[None, :], mask=(row < 3)[:, None], other=0.0)
    tl.store(target + row, tl.sum(weight * power[None, :], 1), mask=row < 3)


@triton.jit
def sum_tiles(features, strides, norms, transforms, tables, sums, sizes, eps, SLOTS: tl.constexpr, D: tl.constexpr):
    """Weighted sums of the power of one sampled tile of one head.

    Queries, keys and input come one after another: all at once, their registers would leave a multiprocessor one program.

    Args:
        features, strides: query, key and the layer's input, each (B, N, H, D), three strides each.
        norms: weights of the RMS norm of queries and keys, (D,) or None.
        transforms: DCT of every kind of tile (K, SLOTS, SLOTS) in the dtype of queries and keys, and of the input.
        tables: places int32 (S, SLOTS), kind int32 (S,), weights float32 (K, 6, SLOTS).
        sums: float32 (B, S, H, 9).
        sizes: H and S.
    """
    heads, tiles = sizes
    head = tl.program_id(0) % heads
    tile = tl.program_id(0) // heads % tiles
    sample = tl.program_id(0) // (heads * tiles)
    place = tl.load(tables[0] + tile * SLOTS + tl.arange(0, SLOTS))
    kind = tl.load(tables[1] + tile)
    live = place >= 0
    matrix, weights = kind * SLOTS * SLOTS, tables[2] + kind * 6 * SLOTS
    target = sums + tl.program_id(0).to(tl.int64) * VALUES
    for number in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
        x = load_tokens(features[number], strides[number], sample, head, place, live, D)
        if norms[number] is not None:
            x = norm_tokens(x, norms[number], eps, D)
        _sum_power(x, transforms[0] + matrix, weights, target + 3 * number, SLOTS)
    x = load_tokens(features[2], strides[2], sample, head, place, live, D)
    _sum_power(x, transforms[1] + matrix, weights + 3 * SLOTS, target + 6, SLOTS)


@triton.jit
def _load_layer(layer, first, outputs, width, inputs, OUT: tl.constexpr, IN: tl.constexpr):
    """`inputs` columns of a linear layer's weight (outputs, width) from `first` on: float32 (OUT, IN), zero beyond."""
    row, column = tl.arange(0, OUT)[:, None], tl.arange(0, IN)[None, :]
    known = (row < outputs) & (column < inputs)
    return tl.load(layer[0] + row * width + first + column, mask=known, other=0.0).to(tl.float32)


@triton.jit
def _load_vector(source, size, WIDTH: tl.constexpr):
    """float32 (WIDTH,), zero behind `size`."""
    place = tl.arange(0, WIDTH)
    return tl.load(source + place, mask=place < size, other=0.0).to(tl.float32)


@triton.jit
def _silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def score_heads(
    sums,
    timestep,
    timestep_stride,
    layers,
    own,
    logits,
    bands,
    sizes,
    scales,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    TIME: tl.constexpr,
    EMBEDDING: tl.constexpr,
):
    """Statistics, routing network, prior and choice of one head of one sample.

    Args:
        sums: of `sum_tiles`, (B, S, H, 9).
        timestep: (B,) with its stride.
        layers: weight and bias of the three linear layers.
        own: embedding (H, EMBEDDING) and bias (H, 3) of the heads.
        logits, bands: float32 and int64 (B, H, 3) and (B, H).
        sizes: H, S and the width of the hidden layers.
        scales: floor of energies and variance, scale of statistics, the timestep's fastest angular frequency, the log of
            the range of frequencies over half of TIME, and the prior's strength.
    """
    heads, tiles, hidden = sizes
    floor, scale, fastest, fall, lean = scales
    sample, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    width = 8 + TIME + EMBEDDING
    # Weights first: they depend on nothing, and come while the statistics are summed up.
    known_weight = _load_layer(layers[0], 0, hidden, width, 8, HIDDEN, 8)
    time_weight = _load_layer(layers[0], 8, hidden, width, TIME, HIDDEN, TIME)
    own_weight = _load_layer(layers[0], 8 + TIME, hidden, width, EMBEDDING, HIDDEN, EMBEDDING)
    second_weight = _load_layer(layers[1], 0, hidden, hidden, hidden, HIDDEN, HIDDEN)
    last_weight = _load_layer(layers[2], 0, 3, hidden, hidden, 4, HIDDEN)

    start = sums + sample.to(tl.int64) * tiles * heads * VALUES
    tile, value = tl.arange(0, TILES)[:, None], tl.arange(0, 8)[None, :]
    entry = start + (tile * heads + head) * VALUES + value
    energies = tl.sum(tl.load(entry, mask=(tile < tiles) & (value < 6), other=0.0), 0)
    # Every head holds a share of the input's channels.
    row = tl.arange(0, ROWS)
    part = start + row * VALUES + 6
    time = tl.sum(tl.load(part, mask=row < tiles * heads, other=0.0), 0) / heads
    space = tl.sum(tl.load(part + 1, mask=row < tiles * heads, other=0.0), 0) / heads
    variance = tl.sum(tl.load(part + 2, mask=row < tiles * heads, other=0.0), 0) / heads + floor
    place = tl.arange(0, 8)
    rough = tl.where(place == 6, time, space) / variance
    known = tl.where(place < 6, tl.log(energies + floor), rough) * scale

    t = tl.load(timestep + sample * timestep_stride).to(tl.float32)
    place = tl.arange(0, TIME)
    angle = t * fastest * tl.exp(-fall * (place % (TIME // 2)).to(tl.float32))
    wave = tl.where(place < TIME // 2, tl.cos(angle), tl.sin(angle))
    embedding = _load_vector(own[0] + head * EMBEDDING, EMBEDDING, EMBEDDING)

    x = _load_vector(layers[0][1], hidden, HIDDEN) + tl.sum(known_weight * known[None, :], 1)
    x += tl.sum(time_weight * wave[None, :], 1) + tl.sum(own_weight * embedding[None, :], 1)
    x = _silu(x)
    x = _silu(_load_vector(layers[1][1], hidden, HIDDEN) + tl.sum(second_weight * x[None, :], 1))
    scores = _load_vector(layers[2][1], 3, 4) + tl.sum(last_weight * x[None, :], 1)
    scores += _load_vector(own[1] + head * 3, 3, 4)
    band = tl.arange(0, 4)
    scores += (2 * t - 1) * lean * (1 - band).to(tl.float32)
    tl.store(logits + tl.program_id(0) * 3 + band, scores, mask=band < 3)
    tl.store(bands + tl.program_id(0), tl.argmax(tl.where(band < 3, scores, float("-inf")), 0).to(tl.int64))

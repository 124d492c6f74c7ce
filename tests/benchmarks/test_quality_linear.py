"""Linear attention beside softmax attention: against its definition with full matrices, in float64
and in half precision, and its gradients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.quality.linear import (
    TilesAndLinear,
    WindowAndLinear,
    best_tiles,
    features,
    linear_flops,
    linear_to_all,
    linear_to_others,
)
from tests.support.layers import weights_of
from torch import Tensor

from freqformer.attention import NORM_EPS, FreqAttention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid, tile_layout
from freqformer.ops.tokens import rms_norm, rotate
from freqformer.patterns import topk_tiles

TILES, SLOTS, HEADS, DIM = 4, 3, 2, 8
GRID = Grid(2, 4, 4)
CONFIG = FreqFormerConfig(
    tile=(2, 2, 2), window=(1, 1, 1), mid_tiles=2, routing="fixed", low_branch=False
)
TILED = FreqFormerConfig(
    tile=(2, 2, 2), mid_tiles=2, routing="fixed", low_branch=False, allocation=(1, 1)
)


def tiles(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = (2, TILES, SLOTS, HEADS, DIM)
    return [
        scale * torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for _ in "qkv"
    ]


def by_definition(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """Every weight written out: features of query . features of key where `seen` (B, H, T, T) is 1,
    each row over its sum."""
    flat = [features(x).flatten(1, 2).transpose(1, 2) for x in (query, key)]
    weights = flat[0] @ flat[1].transpose(2, 3)
    weights = weights * seen.repeat_interleave(SLOTS, 2).repeat_interleave(SLOTS, 3)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)
    out = weights @ value.to(weights).flatten(1, 2).transpose(1, 2)
    return out.transpose(1, 2).unflatten(1, (TILES, SLOTS))


def chosen() -> Tensor:
    """Some tiles of every query tile, others for each head; the last tile of head 0 has all."""
    draw = torch.Generator().manual_seed(1)
    picked = (torch.rand(2, HEADS, TILES, TILES, generator=draw) < 0.5).double()
    picked[:, 0, -1] = 1
    picked[:, 1, :, 0] = 0
    return picked


def test_to_all_is_its_definition() -> None:
    query, key, value = tiles()
    expected = by_definition(query, key, value, torch.ones(2, HEADS, TILES, TILES))
    torch.testing.assert_close(linear_to_all(query, key, value), expected)


def test_to_others_is_its_definition_and_nothing_where_all_are_chosen() -> None:
    query, key, value = tiles()
    out = linear_to_others(query, key, value, chosen())
    torch.testing.assert_close(out, by_definition(query, key, value, 1 - chosen()))
    assert not bool(out[:, -1, :, 0].any())
    nothing = torch.zeros(2, HEADS, TILES, TILES)
    torch.testing.assert_close(
        linear_to_others(query, key, value, nothing), linear_to_all(query, key, value)
    )


@pytest.mark.parametrize("others", [False, True])
def test_gradients_are_those_of_the_definition(others: bool) -> None:
    given = [x.requires_grad_() for x in tiles()]
    weight = torch.randn(given[0].shape, dtype=torch.float64)
    seen = 1 - chosen() if others else torch.ones(2, HEADS, TILES, TILES)
    out = linear_to_others(*given, chosen()) if others else linear_to_all(*given)
    mine = torch.autograd.grad((out * weight).sum(), given)
    theirs = torch.autograd.grad((by_definition(*given, seen) * weight).sum(), given)
    for own, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_sums_are_kept_in_float32(scale: float) -> None:
    """Of bfloat16 inputs, which are taken as they are: far nearer than their rounding."""
    given = tiles(torch.bfloat16, scale)
    wide = [x.double() for x in given]
    for own, exact in (
        (linear_to_all(*given), linear_to_all(*wide)),
        (linear_to_others(*given, chosen()), linear_to_others(*wide, chosen())),
    ):
        assert own.dtype == torch.float32
        torch.testing.assert_close(own.double(), exact, rtol=1e-4, atol=1e-5 * scale)


def test_the_best_tiles_are_those_of_mid_heads() -> None:
    query, key, _ = tiles()
    picked = best_tiles(query, key, 2)
    means = [x.mean(2).transpose(1, 2).flatten(0, 1) for x in (query, key)]
    lists = topk_tiles(*means, 2)
    expected = torch.zeros(2 * HEADS, TILES, TILES).scatter_(2, lists, 1.0)
    assert torch.equal(picked.flatten(0, 1), expected)
    assert bool(best_tiles(query, key, 99).all())


def given_tokens() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(2, GRID.num_tokens, HEADS * DIM, generator=draw)
    angles = torch.rand(GRID.num_tokens, DIM // 2, generator=draw)
    return x, torch.tensor([0.2, 0.8]), (angles.cos(), angles.sin())


def linear_part(layer: FreqAttention, x: Tensor, rotary: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Queries, keys and values in tiles (B, T, S, H, D) as a layer has them."""
    query, key, value = layer.project(x).qkv
    made = [
        rotate(rms_norm(one, norm, NORM_EPS).transpose(1, 2), rotary).transpose(1, 2)
        for one, norm in ((query, layer.query_norm), (key, layer.key_norm))
    ]
    order = tile_layout(GRID, CONFIG.tile).raster_to_tile
    return [one[:, order].unflatten(1, (4, 8)) for one in (*made, value)]


def test_a_window_starts_alone_and_gates_bring_linear_attention() -> None:
    torch.manual_seed(0)
    layer = WindowAndLinear(HEADS * DIM, HEADS, CONFIG)
    plain = FreqAttention(HEADS * DIM, HEADS, CONFIG)
    plain.load_state_dict(weights_of(layer), strict=False)
    x, timestep, rotary = given_tokens()
    torch.testing.assert_close(layer(x, GRID, timestep, rotary), plain(x, GRID, timestep, rotary))
    with torch.no_grad():
        layer.gates.bias.copy_(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    linear = linear_to_all(*linear_part(layer, x, rotary)).flatten(1, 2)
    back = tile_layout(GRID, CONFIG.tile).tile_to_raster
    expected = layer.to_out(linear[:, back].flatten(2))
    torch.testing.assert_close(layer(x, GRID, timestep, rotary), expected)


def test_tiles_start_alone_and_the_projection_brings_the_others() -> None:
    torch.manual_seed(0)
    layer = TilesAndLinear(HEADS * DIM, HEADS, TILED)
    plain = FreqAttention(HEADS * DIM, HEADS, TILED)
    plain.load_state_dict(weights_of(layer), strict=False)
    x, timestep, rotary = given_tokens()
    own = plain(x, GRID, timestep, rotary)
    torch.testing.assert_close(layer(x, GRID, timestep, rotary), own)
    with torch.no_grad():
        layer.projection.weight.copy_(torch.eye(DIM))
    query, key, value = linear_part(layer, x, rotary)
    linear = linear_to_others(query, key, value, best_tiles(query, key, 2)).flatten(1, 2)
    back = tile_layout(GRID, TILED.tile).tile_to_raster
    added = (linear[:, back].flatten(2) @ layer.to_out.weight.T).to(own)
    torch.testing.assert_close(layer(x, GRID, timestep, rotary), own + added)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="grids that the tile divides are allowed"):
        WindowAndLinear(HEADS * DIM, HEADS, CONFIG)(
            torch.zeros(1, 3 * 4 * 4, HEADS * DIM), Grid(3, 4, 4), torch.tensor([0.5])
        )
    with pytest.raises(ValueError, match="MID heads with 'topk' are allowed"):
        TilesAndLinear(HEADS * DIM, HEADS, CONFIG)


def test_flops_grow_with_the_tokens() -> None:
    assert linear_flops("all", 100, 8, 10) == 4 * 100 * 64
    assert linear_flops("others", 100, 8, 10) == 6 * 100 * 64 + 2 * 100 * 64


@pytest.mark.slow
def test_blocks_of_new_variants_compile_whole() -> None:
    """In a process of their own, since a compiler can't trace the type checks of tests."""
    names = [
        "window_and_linear",
        "best_tiles_and_linear",
        "soft_routing_by_log_snr",
        "soft_routing_band_gains",
        "soft_routing_few_tiles_in_noise",
        "paper_band_gains",
    ]
    program = [sys.executable, "-m", "tests.support.compiled_variants", *names]
    root = Path(__file__).parents[2]
    done = subprocess.run(program, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = dict(line.split() for line in done.stdout.splitlines())
    assert list(told) == names
    assert all(float(difference) < 1e-3 for difference in told.values()), told

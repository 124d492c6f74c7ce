"""Eager block-sparse attention against the reference, list by list."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from freqformer.grid import Grid, tile_layout
from freqformer.ops.backends import PlainImpl
from freqformer.ops.block_sparse import (
    TileLists,
    block_sparse_attention,
    dense_attention,
    eager,
)
from freqformer.patterns import summary_cells

Extras = tuple[Tensor, Tensor, Tensor]
ROWS, WIDTH = 3, 8
IMPLS: tuple[PlainImpl, ...] = ("eager", "reference")
GRIDS = [Grid(4, 4, 8), Grid(3, 5, 7), Grid(1, 1, 1), Grid(1, 7, 11), Grid(11, 1, 2)]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _lists(tiles: int, rows: int, seed: int) -> Tensor:
    """Random lists of distinct tiles, some of them empty, -1 behind the end."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, tiles, tiles, generator=generator).argsort(-1)
    lengths = torch.randint(0, tiles + 1, (rows, tiles, 1), generator=generator)
    return order.masked_fill(torch.arange(tiles) >= lengths, -1)


def _inputs(
    grid: Grid, extra: int, *, shared: bool, seed: int
) -> tuple[list[Tensor], Extras, TileLists]:
    layout = tile_layout(grid, (2, 2, 4))
    cells = summary_cells(layout, 3)
    tensors = [_random(ROWS, grid.num_tokens, WIDTH, seed=seed + i) for i in range(3)]
    keys = cells.num_cells + extra
    extras = (
        _random(ROWS, keys, WIDTH, seed=seed + 3),
        _random(ROWS, keys, WIDTH, seed=seed + 4),
        _random(ROWS, keys),
    )
    lists = _lists(layout.num_tiles, 1 if shared else ROWS, seed)
    return tensors, extras, TileLists(layout, lists, cells)


def _results(
    impl: PlainImpl, tensors: list[Tensor], extras: Extras, tiles: TileLists | None
) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (*tensors, *extras)]
    query, key, value = leaves[:3] if tiles is not None else (leaves[0], None, None)
    out = block_sparse_attention(
        query, key, value, (leaves[-3], leaves[-2], leaves[-1]), tiles, impl=impl
    )
    used = leaves if tiles is not None else [leaves[0], *leaves[-3:]]
    return [out, *torch.autograd.grad(out, used, _random(*out.shape, seed=9))]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("extra", [0, 5])
def test_output_and_gradients(grid: Grid, shared: bool, extra: int) -> None:
    for seed in (0, 10):
        inputs = _inputs(grid, extra, shared=shared, seed=seed)
        for got, wanted in zip(*(_results(impl, *inputs) for impl in IMPLS), strict=True):
            assert (got - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("queries", [1, 127, 128, 300])
def test_extra_keys_alone(queries: int) -> None:
    extras = (
        _random(ROWS, 9, WIDTH, seed=1),
        _random(ROWS, 9, WIDTH, seed=2),
        _random(ROWS, 9, seed=3),
    )
    tensors = [_random(ROWS, queries, WIDTH)]
    for got, wanted in zip(*(_results(impl, tensors, extras, None) for impl in IMPLS), strict=True):
        assert (got - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("scores", [1, 1 << 10, 1 << 22])
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, scores: int) -> None:
    inputs = _inputs(Grid(3, 5, 7), 4, shared=False, seed=5)
    wanted = _results("eager", *inputs)
    monkeypatch.setattr(eager, "CHUNK_SCORES", scores)
    for got, other in zip(_results("eager", *inputs), wanted, strict=True):
        assert (got - other).abs().max() <= 1e-12


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("hidden", ["no key", "all hidden"])
def test_a_query_without_keys_gives_zeros(impl: PlainImpl, hidden: str) -> None:
    (query, key, value), extras, tiles = _inputs(Grid(3, 5, 7), 0, shared=True, seed=1)
    tiles.lists[0, 2] = -1
    keys = 0 if hidden == "no key" else extras[0].shape[1]
    bias = torch.full((ROWS, keys), -torch.inf, dtype=torch.float64)
    extras = (extras[0][:, :keys], extras[1][:, :keys], bias)
    nothing = TileLists(tiles.layout, tiles.lists, None)
    start, end = tiles.layout.offsets[2:4].tolist()
    results = _results(impl, [query, key, value], extras, nothing)
    assert not results[0][:, start:end].any()
    assert all(x.isfinite().all() for x in results)
    assert not results[1][:, start:end].any()


@pytest.mark.parametrize("impl", IMPLS)
def test_dense_attention(impl: PlainImpl) -> None:
    query, key, value = (
        _random(ROWS, 300, WIDTH),
        _random(ROWS, 40, WIDTH, seed=1),
        _random(ROWS, 40, WIDTH, seed=2),
    )
    mask = torch.rand(ROWS, 40) < 0.5
    mask[:, 0] = True
    got = dense_attention(query, key, value, mask, impl=impl)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask[:, None]
    )
    assert (got - wanted).abs().max() <= 1e-12
    assert torch.equal(dense_attention(query, key, value, torch.ones_like(mask), impl=impl),
                       dense_attention(query, key, value, None, impl=impl))  # fmt: skip

"""Patches and the rotary embedding."""

from __future__ import annotations

import pytest
import torch

from freqformer.grid import Grid, tile_layout
from freqformer.models.embeddings import patchify, rotary_tables, unpatchify
from freqformer.ops.tokens import rotate

CPU = torch.device("cpu")


def test_a_token_is_its_patch_and_back():
    video = torch.randn(2, 3, 4, 6, 10)
    tokens = patchify(video, (2, 3, 5))
    assert tokens.shape == (2, 2 * 2 * 2, 3 * 2 * 3 * 5)
    # Token (frame 1, row 0, column 1) in raster order.
    assert torch.equal(tokens[:, 5], video[:, :, 2:4, 0:3, 5:10].flatten(1))
    assert torch.equal(unpatchify(tokens, Grid(2, 2, 2), (2, 3, 5)), video)


@pytest.mark.parametrize("head_dim", [6, 16, 64])
def test_scores_depend_on_the_distance_alone(head_dim):
    grid = Grid(3, 4, 5)
    query, key = torch.randn(2, head_dim, dtype=torch.float64)
    tables = rotary_tables(grid, None, head_dim, CPU)
    assert tables[0].shape == tables[1].shape == (60, head_dim // 2)
    rotated = [rotate(x.expand(60, -1), tables).view(3, 4, 5, head_dim) for x in (query, key)]
    for step in ((1, 0, 0), (0, 2, 0), (0, 0, 3), (1, 1, 1)):
        ends = [slice(0, extent - s) for s, extent in zip(step, grid.shape, strict=True)]
        starts = [slice(s, None) for s in step]
        scores = (rotated[0][tuple(ends)] * rotated[1][tuple(starts)]).sum(-1)
        torch.testing.assert_close(scores, scores.flatten()[0].expand_as(scores), rtol=1e-6, atol=1e-6)
        assert abs(scores.flatten()[0] - (query * key).sum()) > 1e-3  # every axis turns something


def test_tile_order_permutes_the_tables():
    grid, tile = Grid(3, 4, 5), (2, 2, 3)
    raster, tiled = rotary_tables(grid, None, 8, CPU), rotary_tables(grid, tile, 8, CPU)
    index = tile_layout(grid, tile).raster_to_tile
    for table, permuted in zip(raster, tiled, strict=True):
        assert torch.equal(table[index], permuted)


def test_tables_made_in_inference_mode_serve_training():
    grid = Grid(2, 3, 7)
    with torch.inference_mode():
        tables = rotary_tables(grid, None, 8, CPU)
    x = torch.randn(42, 8, requires_grad=True)
    rotate(x, tables).sum().backward()
    assert x.grad is not None

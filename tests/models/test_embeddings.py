"""Patches, the rotary embedding, and the embedding of the place in the whole video."""

from __future__ import annotations

import pytest
import torch

from freqformer.grid import Grid, tile_layout
from freqformer.models import embeddings
from freqformer.models.embeddings import patchify, place_waves, rotary_tables, unpatchify
from freqformer.ops import tokens
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
        torch.testing.assert_close(
            scores, scores.flatten()[0].expand_as(scores), rtol=1e-6, atol=1e-6
        )
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


def test_clips_of_many_sizes_by_turns_copy_nothing_again():
    grids = [Grid(frames, 6, width) for frames in (2, 3, 4) for width in (5, 7, 9)]

    def told() -> list[torch.Tensor]:
        tables = [rotary_tables(grid, (2, 2, 3), 8, CPU)[0] for grid in grids]
        return tables + [place_waves(grid, (2, 2, 3), 24, CPU) for grid in grids]

    def copies() -> int:
        kept = (embeddings._axis_turns, embeddings._axis_waves, tokens._indices)
        return sum(one.cache_info().misses for one in kept)

    first = told()
    before = copies()
    for once, again in zip(first, told(), strict=True):
        assert torch.equal(once, again)
    assert copies() == before


@pytest.mark.parametrize("dim", [6, 16, 64])
def test_every_place_has_its_own_waves(dim):
    table = place_waves(Grid(3, 8, 12), None, dim, CPU)
    assert table.shape == (288, dim)
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.02
    assert table[:, 6 * (dim // 6) :].abs().sum() == 0
    assert table.abs().max() <= 1


def test_places_are_relative_to_the_video():
    small, large = Grid(3, 5, 7), Grid(9, 15, 21)
    waves = [place_waves(grid, None, 24, CPU).view(*grid.shape, 24) for grid in (small, large)]
    # The middle of every small token is the middle of the three larger ones there.
    torch.testing.assert_close(waves[1][1::3, 1::3, 1::3], waves[0])
    assert torch.equal(
        place_waves(small, (2, 2, 3), 24, CPU),
        waves[0].flatten(0, 2)[tile_layout(small, (2, 2, 3)).raster_to_tile],
    )


def test_places_in_the_frame_alone_do_not_depend_on_the_length():
    short, long = (place_waves(Grid(frames, 5, 7), None, 24, CPU, time=False) for frames in (3, 12))
    assert torch.equal(short, long[: 3 * 35])
    assert torch.equal(short[:35], short[35:70])
    assert torch.cdist(short[:35], short[:35]).fill_diagonal_(1).min() > 0.02
    # What is told is told as with time: its eight channels alone are missing.
    assert torch.equal(short[:, 8:], place_waves(Grid(3, 5, 7), None, 24, CPU)[:, 8:])
    assert short[:, :8].abs().sum() == 0

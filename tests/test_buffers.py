"""Segments of the key buffer: apart, padded, and there only when they hold something."""

from __future__ import annotations

import math

import pytest

from freqformer.buffers import PAD, key_layout, power_of_two, workspace_bytes
from freqformer.config import BandFeatures, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.plan import build_plan


@pytest.mark.parametrize("features", ["full", "high_pass_values"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("text", [0, 7])
@pytest.mark.parametrize("cells", [0, 3])
def test_segments_follow_each_other_with_room_between(
    cells: int, text: int, learned: bool, features: BandFeatures
) -> None:
    config = FreqFormerConfig(summary_tokens=cells, band_features=features)
    plan = build_plan(
        Grid(5, 11, 13),
        config,
        num_heads=1,
        head_dim=16,
        num_text_tokens=text,
        learned_summaries=learned,
    )
    keys, cells = key_layout(plan), plan.cells.num_cells
    assert (cells > 0) == (config.summary_tokens > 0)
    lengths = [plan.num_low_tokens, cells, cells * learned, cells * learned, text]
    end = plan.layout.grid.num_tokens + PAD
    for start, length in zip(keys.offsets, lengths, strict=False):
        assert start == (end if length else -1)
        end += length + PAD if length else 0
    if text and features != "full":
        assert keys.exact == end
        end += plan.layout.grid.num_tokens + PAD
    else:
        assert keys.exact == 0
    assert keys.rows == end


@pytest.mark.parametrize("features", ["full", "high_pass_values"])
@pytest.mark.parametrize("text", [0, 300])
@pytest.mark.parametrize(
    ("tokens", "mid_tiles"), [(130, 16), (16_384, 4), (16_384, None), (130_000, 16)]
)
def test_workspace_is_the_sum_of_its_buffers(
    tokens: int, mid_tiles: int | None, text: int, features: BandFeatures
) -> None:
    """Each buffer by its shape, as the launches make them."""
    config = FreqFormerConfig(mid_tiles=mid_tiles, band_features=features, summary_tokens=8)
    plan = build_plan(Grid(1, 1, tokens), config, num_heads=3, head_dim=16, num_text_tokens=text)
    heads, width, tiles, keys = 3, 16, plan.layout.num_tiles, key_layout(plan).rows
    queries = tokens + text + plan.num_low_tokens
    wide = [
        (heads, queries, width),
        (heads, keys, width),
        (heads, keys, width),
        (heads, plan.num_low_tokens, width),
    ]
    narrow = [(heads, queries), (3, heads, tiles, width)]
    if mid_tiles is not None and mid_tiles < tiles:
        programs = min(heads * -(-tiles // 16), 528)
        narrow += [
            (heads, tiles, mid_tiles),
            (heads, tiles, plan.cells.num_cells),
            (programs, 16, power_of_two(tiles)),
        ]
    parts = min(16, tiles // 64)
    if parts > 1 and text:
        narrow += [(heads, parts, text, width), (heads, parts, text)]
    expected = 2 * sum(map(math.prod, wide)) + 4 * sum(map(math.prod, narrow))
    assert workspace_bytes(plan, heads, 2) == expected

"""Segments of the key buffer: apart, padded, and there only when they hold something."""

from __future__ import annotations

import pytest

from freqformer.buffers import PAD, key_layout
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

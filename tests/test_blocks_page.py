"""What docs/performance.md says of blocks of diffusers' models is in the committed result files."""

from __future__ import annotations

import math

import pytest
from benchmarks.plugin_blocks import CASES, block_flops
from tests.support.pages import check_says, result

PAGE = "docs/performance.md"


@pytest.mark.parametrize(
    ("name", "title", "compiled"),
    [
        ("wan-14b-720p", "Wan 14B", False),
        ("wan-14b-720p", "Wan 14B, compiled", True),
        ("wan-14b-20s", "Wan 14B", False),
        ("minimax-h3-5s", "MiniMax-H3, with text and sound", False),
        ("hunyuan-1.5-720p", "HunyuanVideo 1.5", False),
    ],
)
def test_rows_of_blocks(name: str, title: str, compiled: bool) -> None:
    case = result("plugin_blocks_compiled" if compiled else "plugin_blocks")["cases"][name]
    rows, dense = case["rows"], case["rows"]["dense"]["ms"]
    cells = [title, f"{math.prod(case['grid']):,}", f"{dense:,.1f}"]
    for row in ("thirds", "preset-0.2", "preset-0.1"):
        cells.append(f"{dense / rows[row]['ms']:.2f}" if row in rows else "–")
    if name.startswith("hunyuan"):
        cells.append("–")
    else:
        flops, own = block_flops(CASES[name])
        allowed = flops / (flops - 0.8 * own)
        cells.append(f"{dense / rows['preset-0.2']['ms'] / allowed:.0%}")
    check_says(PAGE, f"| {' | '.join(cells)} |")


def test_blocks_of_models() -> None:
    cases, compiled = result("plugin_blocks")["cases"], result("plugin_blocks_compiled")["cases"]
    rows = cases["wan-14b-720p"]["rows"]
    dense, steps = (rows[row]["peak_bytes"] / 1e9 for row in ("dense", "thirds-steps"))
    times = {row: f"{rows['dense']['ms'] / values['ms']:.2f}" for row, values in rows.items()}
    wide = ", ".join(times[f"tiles-128-{density}"] for density in (0.5, 0.2))
    check_says(
        PAGE,
        f"all heads dense {times['own']} times dense",
        f"thirds have {times['thirds-steps']}, preset at 0.5 {times['preset-0.5']}",
        f"in tiles of 128 {wide} and {times['tiles-128-0.1']} times",
        f"{steps:.1f} GB for {dense:.1f}",
    )
    peaks = [values["peak_bytes"] for row, values in rows.items() if row != "thirds-steps"]
    assert max(peaks) < 1.005 * rows["dense"]["peak_bytes"]
    peaks = {row: x["peak_bytes"] / 1e9 for row, x in cases["minimax-h3-5s"]["rows"].items()}
    check_says(
        PAGE, f"MiniMax-H3's is at most {max(peaks.values()) / peaks['dense']:.2f} times dense"
    )
    peaks = {row: x["peak_bytes"] / 1e9 for row, x in compiled["wan-14b-720p"]["rows"].items()}
    check_says(
        PAGE,
        f"{peaks['thirds'] / peaks['dense']:.2f} times dense for thirds and "
        f"{peaks['preset-0.2'] / peaks['dense']:.2f} at density 0.2 ({peaks['thirds']:.1f} and "
        f"{peaks['preset-0.2']:.1f} GB for {peaks['dense']:.1f})",
        f"holds {cases['hunyuan-1.5-720p']['rows']['dense']['peak_bytes'] / 1e9:.1f} GB",
    )

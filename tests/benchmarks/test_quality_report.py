"""The quality study's page: what stands on it is computed from the committed results."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.quality import report
from benchmarks.quality.figures import draw_figures
from benchmarks.quality.report import Mean, best_fixed, by_variant, mean, paired, rebuilt, results_text, write_report

LEVELS = ("0.1", "0.3", "0.5", "0.7", "0.9")


def made(variant: str, seed: int, loss: float, steps: int = 700) -> dict[str, Any]:
    """A result whose loss is `loss` at the middle noise level, and 0.1 more and less at the ends."""
    result: dict[str, Any] = {
        "variant": variant,
        "seed": seed,
        "steps": steps,
        "step_ms": 40.0 + seed,
        "seconds": 30.0,
        "density": 0.14,
        "attention_flops": 1e12,
        "parameters": 10_000_000,
        "losses": {level: loss + 0.1 - 0.05 * place for place, level in enumerate(LEVELS)},
        "training_curve": [1.0, 0.8, 0.6],
        "machine": {"gpu": "a GPU", "torch": "2.11", "triton": "3.6", "commit": "0123456789abcdef"},
    }
    if variant == "router":
        # Two layers of three heads; the first moves from HIGH to LOW at the highest noise.
        still = [[[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]] * 2
        moved = [[[1.0, 0, 0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0]], still[1]]
        result["allocation"] = [still] * 4 + [moved]
        result["tables"] = {
            name: {"losses": {level: value + extra for level, value in result["losses"].items()}, "density": 0.14}
            for name, extra in (("by_level", 0.001), ("averaged", 0.02))
        }
    return result


@pytest.fixture
def results() -> list[dict[str, Any]]:
    losses = {"dense": (0.1, 0.1), "window": (0.34, 0.36), "freq_full": (0.33, 0.34), "router": (0.31, 0.33)}
    found = [made(name, seed, loss) for name, pair in losses.items() for seed, loss in enumerate(pair)]
    return [*found, made("vsa", 0, 0.2), made("window", 0, 0.30, steps=2800)]


def test_the_page_holds_what_the_committed_results_give() -> None:
    page = report.PAGE.read_text()
    assert page == rebuilt(page, report.read_results())
    for line in page.splitlines():
        if line.startswith("!["):
            assert (report.PAGE.parent / line.split("(")[-1].rstrip(")")).is_file()


def test_no_results_give_no_table() -> None:
    assert results_text([]) == "No results yet."
    assert draw_figures([], Path("nowhere")) == []


def test_what_is_written_by_hand_is_what_the_results_give() -> None:
    text = " ".join(report.PAGE.read_text().split())
    groups = by_variant(report.read_results(), 700)
    first = {name: report.overall(runs[0]["losses"]) for name, runs in groups.items() if 0 in runs}
    gate, beside = (first["window"] - first[name] for name in ("window_gate", "gated_plain"))
    assert f"explains {gate:.4f} of {beside:.4f} (seed 0)" in text
    weighed = paired(groups["window_weighed"], groups["window_few"])
    assert weighed is not None
    assert f"less that of `window_few` is {weighed.text(4, sign=True)} over both" in text
    fewer = 1 - groups["router_window"][0]["density"] / groups["window"][0]["density"]
    assert f"for {fewer:.0%} fewer FLOPs" in text
    dense, window = (groups[name][0]["losses"] for name in ("dense", "window"))
    assert all(dense[level] > window[level] for level in LEVELS[:-1])
    assert dense["0.9"] == min(runs[0]["losses"]["0.9"] for runs in groups.values() if 0 in runs)
    assert min(first, key=lambda name: first[name]) == "beside_both"
    fewer = 1 - groups["router_beside"][0]["density"] / groups["gated_plain"][0]["density"]
    assert f"for {fewer:.0%} fewer FLOPs: one seed each" in text
    assert abs(first["router_beside"] - first["gated_plain"]) < 0.0005
    assert abs(first["gated_fine"] - first["gated_plain"]) < 0.0005
    routers = [runs[0]["allocation"] for runs in groups.values() if "allocation" in runs[0]]
    assert all(report._heads(levels[0])[2] >= 5 / 6 * 36 - 0.05 for levels in routers)
    assert all(1 / 3 <= report._heads(levels[-1])[0] / 36 <= 2 / 3 for levels in routers)
    counts = [run["parameters"] for runs in groups.values() for run in runs.values()]
    assert f"gates, {max(counts) / min(counts) - 1:.1%} of the model" in text


def test_tables_say_have_standard_errors() -> None:
    assert mean([0.2, 0.4, 0.6]) == Mean(pytest.approx(0.4), pytest.approx(0.2 / math.sqrt(3)))  # type: ignore[arg-type]
    assert mean([0.2]).text(3) == "0.200"
    assert mean([0.2, 0.4]).text(3, sign=True) == "+0.300 ± 0.100"


def test_the_best_fixed_variant_has_equal_flops_all_seeds_and_no_router(results: list[dict[str, Any]]) -> None:
    groups = by_variant(results, 700)
    assert list(groups) == ["dense", "vsa", "router", "freq_full", "window"]
    # vsa is lower, but has one seed; dense takes more FLOPs; the router is no fixed variant.
    assert best_fixed(groups) == "freq_full"
    assert best_fixed({"router": groups["router"]}) is None


def test_differences_are_paired_by_seed(results: list[dict[str, Any]]) -> None:
    groups = by_variant(results, 700)
    difference = paired(groups["router"], groups["freq_full"])
    assert difference is not None
    assert (difference.value, difference.error) == (pytest.approx(-0.015), pytest.approx(0.005))
    assert paired(groups["router"], {7: made("window", 7, 0.3)}) is None


def test_tables_say_what_the_results_hold(results: list[dict[str, Any]]) -> None:
    text = results_text(results)
    assert text.index("### 16,384 tokens, 2,800 steps") < text.index("### 16,384 tokens, 700 steps")
    (router,) = [line for line in text.splitlines() if line.startswith("| `router` | 2 ")]
    assert "| 0.3200 ± 0.0100 | -0.0150 ± 0.0050 | 0.4200 ± 0.0100 |" in router
    assert router.endswith("| 0.140 | 10,000,000 | 40.0 | – |")
    (tables,) = [line for line in text.splitlines() if line.startswith("| `router` | 0.3200")]
    assert tables.endswith("| +0.0010 ± 0.0000 | +0.0200 ± 0.0000 | 2.0/2.0/2.0 | 3.0/2.0/1.0 | 17% |")
    assert "best fixed variant is `freq_full`" in text
    assert "- a GPU, torch 2.11, Triton 3.6, commit 012345678" in text


def test_longer_clips_have_tables_of_their_own(results: list[dict[str, Any]]) -> None:
    longer = [made("dense", 0, 0.5, steps=9000) | {"tokens": 65_536, "peak_gib": 41.24}]
    text = results_text(results + longer)
    assert text.index("### 16,384 tokens, 700 steps") < text.index("### 65,536 tokens, 9,000 steps")
    assert text.split("### 65,536 tokens")[1].splitlines()[4].endswith("| 40.0 | 41.2 |")
    assert list(report.drawn(results + longer)) == ["window"]


def test_rebuilding_keeps_what_is_written_by_hand(results: list[dict[str, Any]]) -> None:
    page = "# Title\n<!-- variants: generated -->\nold\n<!-- variants: end -->\nby hand\n"
    page += "<!-- results: generated -->\n<!-- results: end -->\nmore\n"
    new = rebuilt(page, results)
    assert new.startswith("# Title\n<!-- variants: generated -->\n\n| variant |")
    assert "\nold\n" not in new
    assert "<!-- variants: end -->\nby hand\n<!-- results: generated -->" in new
    assert new.endswith("<!-- results: end -->\nmore\n")
    assert rebuilt(new, results) == new
    with pytest.raises(ValueError, match="no single block <!-- results: generated -->"):
        rebuilt(page.replace("<!-- results: end -->", ""), results)


def test_the_report_writes_page_and_figures(tmp_path: Path, results: list[dict[str, Any]]) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for place, result in enumerate(results):
        (folder / f"{place}.json").write_text(json.dumps(result))
    page = tmp_path / "quality.md"
    shutil.copy(report.PAGE, page)
    write_report(folder, page)
    assert "| `router` | 2 |" in page.read_text()
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    # The most steps have no router, so no allocation is drawn.
    assert figures == {"quality-noise.png", "quality-flops.png", "quality-time.png"}
    seven = [result for result in results if result["steps"] == 700]
    paths = draw_figures(seven, tmp_path / "figures")
    assert [path.name for path in paths] == [f"quality-{n}.png" for n in ("noise", "flops", "time", "allocation")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_shares_are_read_by_layer_and_head() -> None:
    layers = torch.tensor([[[0.5, 0.25, 0.25, 0], [1, 0, 0, 0]]]).tolist()
    assert report._heads(layers) == [1.5, 0.25, 0.25]

"""The quality study's page: what stands on it is computed from the committed results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.quality import report
from benchmarks.quality.figures import draw_figures
from benchmarks.quality.report import (
    Mean,
    best_fixed,
    by_variant,
    mean,
    paired,
    results_text,
)

LEVELS = ("0.1", "0.3", "0.5", "0.7", "0.9")


def made(variant: str, seed: int, loss: float, steps: int = 700) -> dict[str, Any]:
    """A result whose loss is `loss` at the middle noise level, and 0.1 more and less at the
    ends."""
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
    if variant == "paper":
        # Two layers of three heads; the first moves from HIGH to LOW at the highest noise.
        still = [[[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]] * 2
        moved = [[[1.0, 0, 0, 0], [0, 1.0, 0, 0], [1.0, 0, 0, 0]], still[1]]
        result["allocation"] = [still] * 4 + [moved]
        result["tables"] = {
            name: {
                "losses": {level: value + extra for level, value in result["losses"].items()},
                "density": 0.14,
            }
            for name, extra in (("by_level", 0.001), ("averaged", 0.02))
        }
    if variant == "soft_routing":
        # Two layers of two heads: LOW gains weight with noise, the own branch keeps its.
        result["gates"] = [
            [[[0.5, 0.5], [place - 0.5, place + 0.5]]] * 2 for place in range(len(LEVELS))
        ]
        result["tables"] = {name: {"losses": result["losses"]} for name in ("by_level", "averaged")}
    return result


@pytest.fixture
def results() -> list[dict[str, Any]]:
    losses = {
        "dense": (0.1, 0.1),
        "window": (0.34, 0.36),
        "thirds": (0.33, 0.34),
        "paper": (0.31, 0.33),
    }
    found = [
        made(name, seed, loss) for name, pair in losses.items() for seed, loss in enumerate(pair)
    ]
    return [*found, made("video_sparse_attention", 0, 0.2), made("window", 0, 0.30, steps=2800)]


def test_no_results_give_no_table() -> None:
    assert results_text([]) == "No results yet."
    assert draw_figures([], Path("nowhere")) == []


def test_what_is_written_by_hand_of_700_steps_is_what_the_results_give() -> None:
    text = " ".join(report.PAGE.read_text().split())
    groups = by_variant(report.read_results(), 700)
    first = {name: report.overall(runs[0]["losses"]) for name, runs in groups.items() if 0 in runs}
    gate, beside = (
        first["window"] - first[name] for name in ("window_times_gate", "window_and_low")
    )
    assert f"explains {gate:.4f} of {beside:.4f} (seed 0)" in text
    weighed = paired(groups["window_and_weighed_summaries"], groups["window_and_few_summaries"])
    assert weighed is not None
    assert (
        f"less that of `window_and_few_summaries` is {weighed.text(4, sign=True)} over both" in text
    )
    fewer = [
        1 - groups[name][0]["density"] / groups["window_and_low"][0]["density"]
        for name in ("hard_routing_and_low", "hard_routing_of_mixed_windows")
    ]
    assert f"as good with {fewer[0]:.0%} and {fewer[1]:.0%} fewer FLOPs" in text
    fewer = 1 - groups["hard_routing_from_window"][0]["density"] / groups["window"][0]["density"]
    assert f"for {fewer:.0%} fewer FLOPs" in text
    dense, window = (groups[name][0]["losses"] for name in ("dense", "window"))
    assert all(dense[level] > window[level] for level in LEVELS[:-1])
    assert sorted(first, key=lambda name: groups[name][0]["losses"]["0.9"])[:2] == [
        "soft_routing_alone",
        "dense",
    ]
    for name in (
        "hard_routing_and_low",
        "hard_routing_of_mixed_windows",
        "window_and_fine_low",
    ):
        assert abs(first[name] - first["window_and_low"]) < 0.0005
    assert abs(first["soft_routing_alone"] - first["soft_routing"]) < 0.0005
    assert (
        first["radial"]
        < first["window"]
        < min(
            first[name] for name in ("best_tiles_and_summaries", "video_sparse_attention", "axial")
        )
    )
    quiet, loud = (
        first[name] - first["window"]
        for name in ("window_and_quiet_summaries", "window_and_summaries")
    )
    assert f"`window_and_quiet_summaries` is {-quiet:.4f} better than `window`" in text
    assert f"the same but for that start, is {loud - quiet:.4f} worse than it" in text
    assert all(
        groups[name][0]["losses"]["0.9"] < window["0.9"]
        for name in ("window_and_quiet_summaries", "window_and_summaries")
    )


def test_what_is_written_by_hand_of_features_and_routers_is_what_the_results_give() -> None:
    text = " ".join(report.PAGE.read_text().split())
    groups = by_variant(report.read_results(), 700)
    first = {name: report.overall(runs[0]["losses"]) for name, runs in groups.items() if 0 in runs}
    for name, written in (
        ("thirds", "beside 2/2/2 heads with full features ({})"),
        ("thirds_band_gains", "learned gains are better ({})"),
        ("thirds_high_pass_values", "values without the low band worse ({})"),
        ("thirds_own_band", "lose by far ({})"),
        ("thirds_moved_by_prior", "changes nothing ({})"),
        ("thirds_by_schedule", "a schedule that moves more heads is worse ({})"),
    ):
        assert written.format(f"{first[name]:.4f}") in text, name
    routers = [runs[0]["allocation"] for runs in groups.values() if "allocation" in runs[0]]
    assert all(report._heads(levels[0])[2] >= 5 / 6 * 36 - 0.05 for levels in routers)
    assert all(1 / 3 <= report._heads(levels[-1])[0] / 36 <= 2 / 3 for levels in routers)
    counts = [run["parameters"] for runs in groups.values() for run in runs.values()]
    assert f"gates, {max(counts) / min(counts) - 1:.1%} of the model" in text


def test_what_is_written_by_hand_of_2800_steps_is_what_the_results_give() -> None:
    text = " ".join(report.PAGE.read_text().split())
    groups = by_variant(report.read_results(), 2800)
    best, soft = groups["window_and_low"], groups["soft_routing"]
    assert best_fixed(groups) == "window_and_low"
    gain = paired(soft, best)
    assert gain is not None
    losses = {
        name: mean([report.overall(run["losses"]) for run in groups[name].values()])
        for name in groups
    }
    ratio = losses["soft_routing"].value / losses["window_and_low"].value
    assert f"`window_and_low`, is {gain.text(4, sign=True)}, {ratio:.3f} times its loss" in text
    pairs = sorted(soft.keys() & best.keys())
    assert (
        f"That is {-gain.value / gain.error:.1f} standard errors of "
        f"{('three', 'four', 'five')[len(pairs) - 3]} pairs" in text
    )
    assert all(
        report.overall(soft[seed]["losses"]) < report.overall(best[seed]["losses"])
        for seed in pairs
    )
    for level in LEVELS:
        assert (
            mean(
                [soft[seed]["losses"][level] - best[seed]["losses"][level] for seed in pairs]
            ).value
            < 0
        )
    timed, beyond = (paired(groups["timestep_routing"], other) for other in (best, soft))
    assert timed is not None
    assert beyond is not None
    assert (
        f"{timed.text(4, sign=True)}, and less that of `soft_routing` {beyond.text(4, sign=True)}"
        in text
    )
    routed = paired(groups["soft_routing_alone"], best)
    assert routed is not None
    assert f"than gates by token alone: {routed.text(4, sign=True)} from `window_and_low`" in text
    assert (
        "trained for 2,800 steps with three to "
        f"{('four', 'five')[max(map(len, groups.values())) - 4]} seeds" in text
    )


def test_what_is_written_by_hand_of_the_network_is_what_the_results_give() -> None:
    text = " ".join(report.PAGE.read_text().split())
    groups = by_variant(report.read_results(), 2800)
    best, soft = groups["window_and_low"], groups["soft_routing"]
    weights = [report.mean_weights(run) for run in soft.values()]
    low = [mean([levels[level][1] for levels in weights]).value for level in (0, -1)]
    assert (
        f"adds {low[0]:+.2f} to the weight of LOW at t = 0.1 and {low[1]:+.2f} at t = 0.9" in text
    )
    held = [
        [
            report.overall(run["tables"][table]["losses"]) - report.overall(run["losses"])
            for run in soft.values()
        ]
        for table in ("by_level", "averaged")
    ]
    assert max(map(abs, held[0])) < 0.00005
    assert f"is worse by {mean(held[1]).text(4)}" in text
    behind = [
        paired(groups[name], best)
        for name in ("hard_routing_and_low", "hard_routing_of_mixed_windows")
    ]
    assert f"behind `window_and_low` by {behind[0].text(4)} and {behind[1].text(4)}" in text  # type: ignore[union-attr]


def test_what_is_written_by_hand_of_longer_clips_and_of_cost_is_what_the_results_give() -> None:
    text = " ".join(report.PAGE.read_text().split())
    runs = [result for result in report.read_results() if report.tokens_of(result) == 65_536]
    losses = {(run["variant"], run["seed"]): f"{report.overall(run['losses']):.4f}" for run in runs}
    assert (
        f"After {runs[0]['steps']} steps `dense` is at {losses['dense', 0]}, the window at "
        f"{losses['window', 0]}" in text
    )
    plain, timed, other = (
        losses[key]
        for key in (("window_and_low", 0), ("timestep_routing", 0), ("timestep_routing", 1))
    )
    assert (
        f"at {plain} (`window_and_low`) and {timed} (`timestep_routing`) with the same seed; "
        f"{other} with another" in text
    )
    dense, one = (
        next(run for run in runs if run["variant"] == name)
        for name in ("dense", "timestep_routing")
    )
    fast, slow = one["step_ms"], dense["step_ms"]
    times = f"{fast:.0f} ms where dense takes {slow:.0f}, {slow / fast:.1f} times less"
    assert f"A step takes {times}, in the same {one['peak_gib']:.1f} GiB" in text
    assert f"{dense['peak_gib']:.1f}" == f"{one['peak_gib']:.1f}"
    case = json.loads((report.RESULTS.parent / "router.json").read_text())["cases"]["64K"]
    timed, layer = case["weighing"]["timestep"], case["weighing"]["timestep"]["layer_in_graph_ms"]
    statistics = dict(case["launches"])["sum_tiles"]
    added = 1e3 * timed["added_to_layer_ms"]
    assert (
        f'({layer:.2f} ms with its projections, H100), `routing="timestep"` adds {added:.0f} µs'
        in text
    )
    assert (
        f"{timed['added_share_of_layer']:.2%}; the launch that takes statistics is "
        f"{statistics:.0f} µs more" in text
    )
    assert f"which makes soft routing {(added + statistics) / 1e3 / layer:.1%}" in text
    alone = case["layer_in_graph_ms"]
    parts = [f"{more / 1e3 / alone:.1%}" for more in (added, added + statistics)]
    assert f"({alone:.2f} ms in the same run), the two are {parts[0]} and {parts[1]}." in text


def test_tables_say_have_standard_errors() -> None:
    assert mean([0.2, 0.4, 0.6]) == Mean(pytest.approx(0.4), pytest.approx(0.2 / math.sqrt(3)))  # type: ignore[arg-type]
    assert mean([0.2]).text(3) == "0.200"
    assert mean([0.2, 0.4]).text(3, sign=True) == "+0.300 ± 0.100"


def test_the_best_fixed_variant_has_equal_flops_all_seeds_and_no_router(
    results: list[dict[str, Any]],
) -> None:
    groups = by_variant(results, 700)
    assert list(groups) == ["dense", "video_sparse_attention", "paper", "thirds", "window"]
    # vsa is lower, but has one seed; dense takes more FLOPs; the router is no fixed variant.
    assert best_fixed(groups) == "thirds"
    assert best_fixed({"paper": groups["paper"]}) is None


def test_differences_are_paired_by_seed(results: list[dict[str, Any]]) -> None:
    groups = by_variant(results, 700)
    difference = paired(groups["paper"], groups["thirds"])
    assert difference is not None
    assert (difference.value, difference.error) == (pytest.approx(-0.015), pytest.approx(0.005))
    assert paired(groups["paper"], {7: made("window", 7, 0.3)}) is None


def test_tables_say_what_the_results_hold(results: list[dict[str, Any]]) -> None:
    text = results_text(results)
    assert text.index("### 16,384 tokens, 2,800 steps") < text.index("### 16,384 tokens, 700 steps")
    (router,) = [line for line in text.splitlines() if line.startswith("| `paper` | 2 ")]
    assert "| 0.3200 ± 0.0100 | -0.0150 ± 0.0050 | 0.4200 ± 0.0100 |" in router
    assert router.endswith("| 0.140 | 10,000,000 | 40.0 | – |")
    (tables,) = [line for line in text.splitlines() if line.startswith("| `paper` | 0.3200")]
    assert tables.endswith(
        "| +0.0010 ± 0.0000 | +0.0200 ± 0.0000 | 2.0/2.0/2.0 | 3.0/2.0/1.0 | 17% |"
    )
    assert "best fixed variant is `thirds`" in text
    assert "- a GPU, torch 2.11, Triton 3.6, commit 012345678" in text


def test_soft_routing_has_a_table_and_a_figure(
    results: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert "| soft routing |" not in results_text(results)
    soft = [*results, made("soft_routing", 0, 0.3)]
    assert (
        "| `soft_routing` | 0.3000 | +0.0000 | +0.0000 | +0.00 | +4.00 | +0.50 | +0.50 |"
        in results_text(soft).splitlines()
    )
    seven = [result for result in soft if result["steps"] == 700]
    assert [path.name for path in draw_figures(seven, tmp_path)][-1] == "quality-weights.png"
    assert "(figures/quality-weights.png)" in results_text(seven)


def test_a_step_of_another_card_says_so(results: list[dict[str, Any]]) -> None:
    other = made("video_sparse_attention", 1, 0.2) | {"variant": "radial", "compiled": True}
    text = results_text(
        [*results, other | {"machine": {**other["machine"], "gpu": "NVIDIA H100 80GB HBM3"}}]
    )
    assert "Steps are timed on: a GPU, unless" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| `radial` | 1 ")]
    assert line.endswith("| 41.0 (H100, compiled) | – |")


def test_longer_clips_have_tables_of_their_own(results: list[dict[str, Any]]) -> None:
    longer = [made("dense", 0, 0.5, steps=9000) | {"tokens": 65_536, "peak_gib": 41.24}]
    text = results_text(results + longer)
    assert text.index("### 16,384 tokens, 700 steps") < text.index("### 65,536 tokens, 9,000 steps")
    assert text.split("### 65,536 tokens")[1].splitlines()[4].endswith("| 40.0 | 41.2 |")
    assert list(report.drawn(results + longer)) == ["window"]


def test_shares_are_read_by_layer_and_head() -> None:
    layers = torch.tensor([[[0.5, 0.25, 0.25, 0], [1, 0, 0, 0]]]).tolist()
    assert report._heads(layers) == [1.5, 0.25, 0.25]


def test_other_rates_and_wider_models_have_a_table_of_their_own(
    results: list[dict[str, Any]],
) -> None:
    usual = {"size": "16k", "learning_rate": 0.001}
    other = [
        made("window", seed, 0.2 + 0.1 * seed) | usual | {"learning_rate": 0.002}
        for seed in range(2)
    ]
    wide = made("dense", 0, 0.15) | usual | {"size": "16k-wide"}
    text = results_text([*results, *other, wide])
    assert "### Other learning rates and sizes" in text
    assert "| `window` | 16k | 0.002 | 700 | 2 | 0.2500 ± 0.0500 |" in text.splitlines()
    assert "| `dense` | 16k-wide | 0.001 | 700 | 1 | 0.1500 |" in text.splitlines()
    assert text.split("### Other")[0] in results_text(results)
    assert "### Other" not in results_text(results)

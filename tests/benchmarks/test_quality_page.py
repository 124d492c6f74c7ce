"""The quality study's page: all that is generated is what the committed results give, its first
screen says what a user needs, and its chart shows every setting once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from benchmarks.quality import report, summary
from benchmarks.quality.aims import aims_table
from benchmarks.quality.chart import SHOWN, every_setting
from benchmarks.quality.costs import density, training_flops
from benchmarks.quality.measured import generated_table, real_clips_table
from benchmarks.quality.page import blocks, read_measured, write_page
from benchmarks.quality.report import read_results, rebuilt
from benchmarks.quality.sizes import SIZES, STUDY
from benchmarks.quality.summary import missing_text, summary_text
from benchmarks.quality.variants import VARIANTS

LEVELS = ("0.1", "0.5", "0.9")


def made(
    variant: str, seed: int, losses: tuple[float, float, float], **named: Any
) -> dict[str, Any]:
    """A result of 2,800 steps on an H200."""
    return {
        "variant": variant,
        "seed": seed,
        "steps": 2800,
        "step_ms": 100.0 if variant == "dense" else 40.0 + seed,
        "density": density(VARIANTS[variant]),
        "attention_flops": 1e12,
        "parameters": 10_000_000,
        "losses": dict(zip(LEVELS, losses, strict=True)),
        "training_curve": [1.0, 0.8],
        "compiled": True,
        "machine": {"gpu": "NVIDIA H200", "torch": "2", "triton": "3", "commit": "0123456789"},
    } | named


@pytest.fixture
def results() -> list[dict[str, Any]]:
    return [
        made("soft_routing", 0, (0.2, 0.1, 0.12)),
        made("soft_routing", 1, (0.22, 0.1, 0.13)),
        made("soft_routing", 2, (0.3, 0.1, 0.1)),  # a seed that dense attention lacks
        made("dense", 0, (0.3, 0.2, 0.1)),
        made("dense", 1, (0.32, 0.2, 0.11)),
        made("window_and_low", 0, (0.23, 0.1, 0.12)),
        made("window_and_low", 1, (0.23, 0.1, 0.12)),
        made("radial", 0, (0.3, 0.1, 0.14)),
    ]


def test_the_page_holds_what_the_committed_results_give() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    assert page == rebuilt(page, blocks(read_results(), read_measured()))
    for line in page.splitlines():
        if line.startswith("!["):
            assert (report.PAGE.parent / line.split("(")[-1].rstrip(")")).is_file()


def test_the_first_screen_is_the_chart_and_five_sentences() -> None:
    first = report.PAGE.read_text(encoding="utf-8").split("<!-- summary: end -->")[0]
    assert first.index("quality-chart.png") < first.index("\n1. After 2,800 steps")
    numbers = [line[:3] for line in first.splitlines() if line[:1].isdigit()]
    assert numbers == ["1. ", "2. ", "3. ", "4. ", "5. "]
    assert "What has not run yet" in first


def test_sentences_compare_by_paired_seeds(results: list[dict[str, Any]]) -> None:
    text = summary_text(results).splitlines()
    assert len(text) == 4  # nothing is longer
    # (0.42 + 0.45) / (0.6 + 0.63), over the two seeds of both.
    assert "0.707 times, -0.0600 ± 0.0000 over 2 seeds of both" in text[0]
    assert "with 7 times the attention FLOPs, 0.2050 ± 0.0050" in text[0]
    assert "it is 0.677, 0.500, 1.190 times dense attention's: worse at t = 0.9." in text[1]
    assert "and 0.40 of its GPU seconds (H200, compiled)" in text[2]
    assert "the router makes 0.0050 ± 0.0050, 3.3%" in text[2]
    assert text[3].endswith("over them at equal FLOPs: `radial` 0.1800 (1 seed), 0.778 times.")


def test_the_best_rate_of_each_is_told_once_others_ran(results: list[dict[str, Any]]) -> None:
    rate = {"learning_rate": 0.002, "size": "16k"}
    more = [
        made("dense", 0, (0.24, 0.18, 0.09), **rate),
        made("dense", 1, (0.0, 0.0, 0.0), **rate),  # another seed doesn't count
        made("soft_routing", 0, (0.3, 0.2, 0.1), **rate),
    ]
    first = summary_text([*results, *more]).splitlines()[0]
    assert "best learning rate of 0.001, 0.002 for each, seed 0" in first
    assert "`soft_routing` 0.1400 (0.001), `dense` 0.1700 (0.002)" in first
    assert "the default has 0.824 times dense attention's loss." in first
    assert "learning rate" not in summary_text(results)
    assert "learning rate" not in summary_text([*results, more[0]])
    assert "(`dense`) | 0.97 | 0.824 | yes |" in aims_table([*results, *more])


def test_one_pair_has_no_errors(results: list[dict[str, Any]]) -> None:
    first = [one for one in results if one["seed"] == 0]
    assert "one seed, so no errors are known" in summary_text(first).splitlines()[1]


def test_nowhere_worse_is_said_only_where_it_is_so(results: list[dict[str, Any]]) -> None:
    better = [
        one | {"losses": dict.fromkeys(LEVELS, 0.09)} if one["variant"] == "soft_routing" else one
        for one in results
    ]
    assert "nowhere worse by two standard errors" in summary_text(better).splitlines()[1]


def test_longer_video_has_a_sentence_in_the_order_of_loss(results: list[dict[str, Any]]) -> None:
    long = {"tokens": 65_536, "steps": 450}
    more = [made("dense", 0, (0.3, 0.2, 0.1), **long), made("window", 0, (0.2, 0.1, 0.1), **long)]
    last = summary_text([*results, *more]).splitlines()[-1]
    assert last.startswith("5. At 65,536 tokens, after 450 steps: `window` 0.1333 (1 seed, 40 ms")
    assert last.index("`window`") < last.index("`dense`")
    slow = made("dense", 0, (0.2, 0.1, 0.1), steps=11200)
    last = summary_text([*results, *more, slow]).splitlines()[-1]
    assert last.startswith("5. At 16,384 tokens, after 11,200 steps: `dense` 0.1333 (1 seed, 100")
    assert "; At 65,536 tokens, after 450 steps: `window`" in last
    assert summary_text([]) == ""


def test_what_is_missing_is_what_the_queue_has_and_the_results_have_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: list[dict[str, Any]]
) -> None:
    queue = tmp_path / "queue.json"
    entries = [
        {"variants": ["radial", "window"], "seeds": [0, 1], "why": "seeds"},
        {"variants": ["dense"], "why": "there"},
        {"variants": ["dense"], "do": "clips", "why": "clips"},
    ]
    queue.write_text(json.dumps({"tasks": entries}))
    monkeypatch.setattr(summary, "QUEUE", queue)
    text = missing_text(results, {"generated": [], "clips": []})
    lines = ["- seeds: `window`, `radial` (3 of 4)", "- clips: `dense` (1 of 1)"]
    assert text.splitlines()[2:] == lines
    measured = {"generated": [], "clips": [made("dense", 0, (1, 1, 1))]}
    assert "clips" not in missing_text(results, measured)
    queue.write_text(json.dumps({"tasks": entries[1:2]}))
    assert missing_text(results, measured) == "Nothing of the queue is missing."


def test_the_chart_shows_every_setting_once(results: list[dict[str, Any]]) -> None:
    wide = {"size": "16k-wide", "learning_rate": 0.001}
    more = [
        made("dense", 0, (0.2, 0.2, 0.2), **wide),
        made("dense", 0, (0.1, 0.1, 0.1), learning_rate=0.002, size="16k"),
        made("thirds", 0, (0.4, 0.4, 0.4)),
        made("soft_routing", 0, (0.4, 0.4, 0.4), steps=700, compiled=False, step_ms=1.0),
        made("window", 0, (0.3, 0.2, 0.1), tokens=65_536, steps=450),
        made("radial", 3, (0.3, 0.1, 0.14), processes=2, step_ms=3.0),
    ]
    short, long = every_setting([*results, *more])
    assert (short.way, [point.name for point in long.points]) == ("H200, compiled", ["window"])
    found = {(point.name, point.size, point.steps): point for point in short.points}
    assert len(found) == len(short.points) == 6
    assert "thirds" not in {point.name for point in short.points}
    dense = found["dense", "16k", 2800]
    assert dense.loss == pytest.approx(0.205)  # not that of the other rate
    assert dense.flops == training_flops(1.0, 2800, STUDY)
    assert dense.seconds == pytest.approx(280)
    assert found["soft_routing", "16k", 700].seconds == pytest.approx(0.7 * 40)
    assert found["radial", "16k", 2800].seconds == pytest.approx(2.8 * 40)  # alone on the card
    assert found["dense", "16k-wide", 2800].flops == training_flops(1.0, 2800, SIZES["16k-wide"])
    assert set(SHOWN) <= set(VARIANTS)


def test_aims_are_ratios_over_shared_seeds(results: list[dict[str, Any]]) -> None:
    rows = [line.split(" | ")[1:] for line in aims_table(results).splitlines()[2:]]
    assert rows == [
        ["0.97", "0.707", "yes |"],
        ["0.97", "–", "not run |"],
        ["0.985", "0.778", "yes |"],
        ["0.995", "0.967", "yes |"],
        ["1", "–", "not run |"],
        ["0.4", "0.400", "yes |"],
        ["0.1", "–", "not run |"],
    ]
    assert aims_table([]).count("not run") == 6
    slow = [one | {"step_ms": 60.0} if one["variant"] == "soft_routing" else one for one in results]
    assert "| 0.4 | 0.600 | no |" in aims_table(slow)


def test_shorter_runs_count_where_they_reach_the_loss(results: list[dict[str, Any]]) -> None:
    reaches = made("soft_routing", 0, (0.2, 0.2, 0.2), steps=1400)
    misses = made("soft_routing", 0, (0.3, 0.3, 0.3), steps=700)
    assert "| 0.4 | 0.200 | yes |" in aims_table([*results, reaches, misses])
    long = {"tokens": 65_536}
    more = [
        made("dense", 0, (0.2, 0.2, 0.2), steps=1400, **long),
        made("soft_routing", 0, (0.1, 0.1, 0.1), steps=350, **long),
        made("soft_routing", 0, (0.1, 0.1, 0.1), steps=1400, **long),
    ]
    assert "| the same at 65,536 tokens | 0.1 | 0.100 | yes |" in aims_table([*results, *more])


def test_measurements_have_tables() -> None:
    assert generated_table([]) == real_clips_table([]) == "No results yet."
    ratios = {"contrast": 0.9, "motion": 1.1, "flicker": 1.25}
    run = {"variant": "dense", "seed": 0, "size": "16k", "steps": 2800, "learning_rate": 0.002}
    one = run | {"frechet": 0.5, **ratios}
    one |= {"frechet_of_held_out": 0.01, "long": {"quarters": [{"frechet": 0.6, **ratios}] * 4}}
    model = "| `dense`, 2,800 steps at 0.002, seed 0 | 16k |"
    quarters = "0.600 / 0.600 / 0.600 / 0.600"
    line = f"{model} 0.500 | 0.90 | 1.10 | 1.25 | {quarters} |"
    assert generated_table([one]).splitlines()[-1].startswith(line)
    assert "| other held-out clips | | 0.010 | 1 | 1 | 1 | | |" in generated_table([one])
    levels = {"bikes": {"0.1": 0.2, "0.9": 0.4}, "carphone": {"0.1": 0.1, "0.9": 0.1}}
    worse = {name: {"0.1": 1.0, "0.9": 1.0} for name in levels}
    two = run | {"losses_by_clip": levels, "before": worse}
    last = real_clips_table([two]).splitlines()[-1]
    assert last == f"{model} 0.3000 | 0.1000 | 1.0000 |"


def test_what_is_said_of_generated_videos_is_so() -> None:
    """By hand, above the table of docs/quality.md."""
    found = {row["variant"]: row for row in read_measured(report.RESULTS)["generated"]}
    default, dense, window = (found[name] for name in ("soft_routing", "dense", "window"))
    assert default["frechet"] < min(dense["frechet"], window["frechet"])

    def contrasts(row: dict[str, Any]) -> list[float]:
        return [quarter["contrast"] for quarter in row["long"]["quarters"]]

    assert max(contrasts(dense)) < 0.18
    assert min(contrasts(default)) > 1.6
    farthest = {
        name: max(quarter["frechet"] for quarter in row["long"]["quarters"])
        for name, row in found.items()
    }
    assert min(farthest, key=lambda name: farthest[name]) == "window"


def test_rebuilding_keeps_what_is_written_by_hand() -> None:
    page = "# Title\n<!-- variants: generated -->\nold\n<!-- variants: end -->\nby hand\n"
    page += "<!-- results: generated -->\n<!-- results: end -->\nmore\n"
    given = {"variants": "| variant |", "results": "none"}
    new = rebuilt(page, given)
    assert new.startswith("# Title\n<!-- variants: generated -->\n\n| variant |")
    assert "\nold\n" not in new
    assert "<!-- variants: end -->\nby hand\n<!-- results: generated -->" in new
    assert new.endswith("<!-- results: end -->\nmore\n")
    assert rebuilt(new, given) == new
    with pytest.raises(ValueError, match="no single block <!-- results: generated -->"):
        rebuilt(page.replace("<!-- results: end -->", ""), given)


def test_the_report_writes_page_and_figures(tmp_path: Path, results: list[dict[str, Any]]) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for place, result in enumerate(results):
        levels = dict.fromkeys(("0.1", "0.3", "0.5", "0.7", "0.9"), 0.1 + 0.01 * place)
        (folder / f"{place}.json").write_text(json.dumps(result | {"losses": levels}))
    page = tmp_path / "quality.md"
    shutil.copy(report.PAGE, page)
    write_page(folder, page)
    assert "| `radial` | 1 |" in page.read_text(encoding="utf-8")
    paths = list((tmp_path / "figures").iterdir())
    assert {path.name for path in paths} == {
        f"quality-{name}.png" for name in ("chart", "noise", "flops", "time")
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)

"""The training-free comparison at a tiny size, and the measures of likeness that it takes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from benchmarks.quality.sizes import Size
from benchmarks.record import RESULTS
from benchmarks.training_free import BUDGETS, CUBES, Amount, single_patterns
from benchmarks.training_free_report import (
    CALIBRATED,
    NOTHING,
    PAGE,
    draw_figures,
    read_results,
    rebuilt,
    results_text,
)

from benchmarks import training_free
from freqformer.calibration.report import read_calibration, write_table
from freqformer.config import Band
from freqformer.generation.likeness import psnr, ssim
from freqformer.grid import Grid

TINY = Amount(
    size=Size(video=(4, 32, 32), layers=1, heads=2, head_dim=12, batch=1),
    calibration_clips=1,
    clips=1,
    steps=2,
    train_steps=3,
    mid_tiles=(1, 4),
    windows=((1, 1, 1), (1, 3, 3)),
)


def test_the_whole_comparison_runs(tmp_path, capsys):
    results, calibration = training_free.run(
        tmp_path / "dense", TINY, torch.device("cpu"), torch.float32
    )
    assert results["dense_table"]["mean_velocity_error"] < 1e-4
    assert results["dense_table"]["psnr"] > 60
    assert list(results["budgets"]) == [str(budget) for budget in BUDGETS]
    for budget, rows in zip(BUDGETS, results["budgets"].values(), strict=True):
        assert {"calibrated", "tolerance", "window", "radial", "topk", "vsa_selection"} <= set(rows)
        for name in ("calibrated", "tolerance"):
            assert 0 < rows[name]["density"] <= budget
            assert sum(rows[name]["heads"].values()) == pytest.approx(1)
        assert all(
            len(row["velocity_error"]) == 10 and row["mean_velocity_error"] > 0
            for row in rows.values()
        )
    # What the page is made of can be written and read.
    read = json.loads(json.dumps(results))
    write_table(calibration, calibration.tolerance_for(0.1), tmp_path / "table")
    text = results_text(
        read | {"machine": {"gpu": "a GPU", "torch": "2", "triton": "3", "commit": "0123456789"}}
    )
    for name, row in read["budgets"]["0.1"].items():
        assert f"| `{name}` | {100 * row['density']:.1f}%" in text
    draw_figures(read, read_calibration(tmp_path / "table"), tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {
        f"calibration-{name}.png" for name in ("velocity", "errors", "allocation", "cost")
    }
    assert "10% of dense attention's FLOPs" in capsys.readouterr().out


def test_patterns_are_at_the_budget():
    budget = BUDGETS[0]
    methods = single_patterns(budget, Grid(16, 32, 32), (6, 6, 64))
    for name, method in methods.items():
        # The radius of the radial pattern is a whole number of tiles, so its FLOPs come in large
        # steps.
        assert method.density == pytest.approx(budget, rel=0.5 if name == "radial" else 0.11)
        assert (method.table.config.summary_tokens > 0) == name.endswith("summaries")
        band = Band.HIGH if name.startswith("window") else Band.MID
        assert (method.table.bands == band).all()
    assert methods["vsa_selection"].table.config == replace(
        CUBES, summary_tokens=0, mid_tiles=methods["vsa_selection"].table.config.mid_tiles
    )


def test_psnr():
    reference = torch.rand(2, 3, 3, 16, 16)
    moved = reference + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1, 1)
    torch.testing.assert_close(
        psnr(moved, reference), torch.tensor([20.0, 40.0]), check_dtype=False, rtol=1e-4, atol=0
    )


def test_ssim_is_that_of_the_definition():
    """At the one place of a frame as large as the window, by sums written out."""
    torch.manual_seed(1)
    video, reference = torch.rand(2, 1, 1, 1, 11, 11).double().unbind(0)
    place = torch.arange(11).double() - 5
    weights = torch.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = video[0, 0, 0], reference[0, 0, 0]
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    spread_x, spread_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
    shared = (weights * (x - mean_x) * (y - mean_y)).sum()
    expected = (2 * mean_x * mean_y + 1e-4) * (2 * shared + 9e-4)
    expected /= (mean_x**2 + mean_y**2 + 1e-4) * (spread_x + spread_y + 9e-4)
    torch.testing.assert_close(ssim(video, reference), expected[None])
    assert float(ssim(video, video)) == pytest.approx(1)


def test_the_page_is_that_of_the_committed_results():
    page = PAGE.read_text(encoding="utf-8")
    assert rebuilt(page, read_results()) == page
    assert NOTHING in rebuilt(page, None)
    with pytest.raises(ValueError, match="page has no single block"):
        rebuilt(re.sub("<!-- results: end -->", "", page), None)


def test_what_is_written_by_hand_is_what_the_results_give():
    results = read_results()
    assert results is not None
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for rows in results["budgets"].values():
        single = max(row["psnr"] for name, row in rows.items() if name not in CALIBRATED)
        assert rows["tolerance"]["psnr"] > single + 5
        assert rows["tolerance"]["psnr"] < 30
    rows = results["budgets"]["0.1"]
    error, decibels = (
        {name: row[key] for name, row in rows.items()} for key in ("mean_velocity_error", "psnr")
    )
    first, second, third = (
        f"{error[name]:.4f}" for name in ("calibrated", "topk_summaries", "tolerance")
    )
    assert (
        f"`calibrated` has a velocity error of {first} and `topk_summaries` of {second}, "
        f"`tolerance` {third}" in text
    )
    calibration = read_calibration(RESULTS / "training_free_table")
    squares, within = (
        calibration.choose_within(0.1).errors,
        calibration.choose(calibration.tolerance_for(0.1)).errors.max(),
    )
    beyond = float((squares > within).double().mean())
    assert (
        f"errs by more than {within:.2f}; with `calibrated` {beyond:.0%} of the heads do, by up to "
        f"{squares.max():.2f}" in text
    )
    assert (
        f"whose videos are {decibels['tolerance'] - decibels['calibrated']:.1f} dB nearer" in text
    )

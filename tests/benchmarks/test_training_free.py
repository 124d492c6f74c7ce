"""The training-free comparison at a tiny size, and the measures of likeness that it takes."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from benchmarks.quality.sizes import Size
from benchmarks.record import RESULTS
from benchmarks.training_free import STARTS, Amount
from benchmarks.training_free_methods import (
    CUBES,
    NUM_BUCKETS,
    chosen,
    guarded,
    preset_table,
    single_patterns,
)
from benchmarks.training_free_report import (
    CALIBRATED,
    NOTHING,
    PAGE,
    density_text,
    read_results,
    rebuilt,
)

from benchmarks import training_free
from freqformer.calibration.report import read_calibration
from freqformer.config import Band
from freqformer.generation.likeness import psnr, ssim
from freqformer.grid import Grid

DENSITY = 0.1
TINY = Amount(
    size=Size(video=(4, 32, 32), layers=1, heads=2, head_dim=12, batch=1),
    calibration_videos=1,
    calibration_steps=3,
    videos=1,
    steps=5,
    train_steps=3,
    densities=(0.6, 0.4),
)
SHAPE = (6, 6, 64)


def test_the_comparison_stops_and_goes_on(tmp_path, capsys):
    places = (tmp_path / "dense", TINY, torch.device("cpu"), torch.float32)
    assert training_free.run(*places, 0.0) is None
    assert "trained for 3 steps" in capsys.readouterr().out
    results = training_free.run(*places, float("inf"))
    assert results is not None
    again = training_free.run(*places, 0.0)
    assert again == results
    assert list(results["rows"]) == [str(start) for start in STARTS]
    for by_density in results["rows"].values():
        for density, rows in by_density.items():
            assert {"preset", "calibrated", "radial", "vsa_selection", "threshold"} <= set(rows)
            assert rows["calibrated"]["density"] <= float(density)
            for name in ("preset", "threshold"):
                assert rows[name]["density"] == pytest.approx(float(density), rel=0.3)
            assert all(row["psnr"] > 0 for row in rows.values())
    # What the page is made of can be written and read.
    read = json.loads(json.dumps(results))
    machine = {"gpu": "a GPU", "torch": "2", "triton": "3", "commit": "0123456789"}
    text = density_text(read | {"machine": machine})
    row = read["rows"]["0.2"]["0.4"]["calibrated"]
    assert f"{row['psnr']:.2f}" in text
    assert "first fifth" in text


def test_patterns_are_at_the_density():
    methods = single_patterns(DENSITY, Grid(16, 32, 32), SHAPE)
    for name, method in methods.items():
        # The radius of the radial pattern is a whole number of tiles, so its FLOPs come in large
        # steps.
        assert method.density == pytest.approx(DENSITY, rel=0.5 if name == "radial" else 0.11)
        assert method.table is not None
        assert (method.table.config.summary_tokens > 0) == name.endswith("summaries")
        band = Band.HIGH if name.startswith("window") else Band.MID
        assert (method.table.bands == band).all()
    vsa = methods["vsa_selection"].table
    assert vsa is not None
    assert vsa.config == replace(CUBES, summary_tokens=0, mid_tiles=vsa.config.mid_tiles)


def test_the_first_steps_can_be_dense():
    table, delivered = preset_table(DENSITY, Grid(16, 32, 32), SHAPE)
    assert delivered == pytest.approx(DENSITY, rel=0.02)
    found = guarded(table, 0.2)
    assert found.shape == (NUM_BUCKETS, 6, 6)
    assert (found.bands[:8] == Band.MID).all()
    assert (found.bands[8:] == Band.DENSE).all()
    assert torch.equal(guarded(table, 0.0).bands[9], table.bands[0])


def test_a_threshold_keeps_the_least_tiles_that_reach_it():
    torch.manual_seed(0)
    query, key = (3 * torch.randn(1, 2, 6, 4) for _ in range(2))
    weights = (query @ key.transpose(-1, -2) / 2).softmax(-1)
    tiles, count = chosen(query, key, 0.7)
    for head in range(2):
        for own in range(6):
            kept = [tile for tile in tiles[0, head, own].tolist() if tile >= 0]
            assert own in kept
            assert len(kept) == count[0, head, own]
            row = weights[0, head, own]
            others = sorted((float(row[tile]) for tile in kept if tile != own), reverse=True)
            left = [float(row[tile]) for tile in range(6) if tile not in kept]
            assert max(left, default=0.0) <= min(others, default=1.0)
            total = float(row[own]) + sum(others)
            assert total >= 0.7
            assert not others or total - others[-1] < 0.7


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

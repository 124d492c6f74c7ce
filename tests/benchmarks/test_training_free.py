"""The training-free comparison at a tiny size, and the measures of likeness that it takes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.quality.sizes import Size
from benchmarks.training_free import STARTS, TIERS, ordered
from benchmarks.training_free_methods import (
    CUBES,
    NUM_BUCKETS,
    chosen,
    guarded,
    preset_table,
    single_patterns,
)
from benchmarks.training_free_model import Amount
from benchmarks.training_free_report import (
    AIMED,
    AIMS,
    FIGURE,
    NOTHING,
    OURS,
    PAGE,
    draw_figure,
    read_results,
    rebuilt,
    results_text,
)
from tests.support.pages import check_says, text_of

from benchmarks import training_free, training_free_model
from freqformer.config import Band
from freqformer.generation.likeness import psnr, ssim
from freqformer.grid import Grid
from freqformer.routing.table import bands_at

DENSITY = 0.1
MACHINE = {"gpu": "a GPU", "torch": "2", "triton": "3", "commit": "0123456789"}
TINY = Amount(
    size=Size(video=(4, 32, 32), layers=1, heads=2, head_dim=12, batch=1),
    calibration_videos=2,
    calibration_steps=3,
    trials=2,
    calibration_clips=1,
    mid_tiles=(1, 2),
    windows=((1, 1, 1),),
    videos=1,
    steps=5,
    train_steps=3,
    densities=(0.4,),
)
SHAPE = (6, 6, 64)


def test_the_comparison_stops_and_goes_on(tmp_path, capsys):
    folder, kept = tmp_path / "dense", []
    places = (folder, TINY, torch.device("cpu"), torch.float32)

    def keep(results):
        kept.append(json.loads(json.dumps(results)))

    assert not training_free.run(*places, keep, seconds=(math.inf, 0.0))
    assert "trained for 3 steps" in capsys.readouterr().out
    assert kept == []
    assert training_free.run(*places, keep)
    results = kept[-1]
    order = list(ordered(TINY))
    assert len(kept) == len(order) == len(set(order))
    assert [name for *_, name in order[: len(TIERS[0])]] == list(TIERS[0])
    assert training_free.run(*places, keep, earlier=results, seconds=(math.inf, 0.0))
    assert len(kept) == len(order)
    # What an earlier call measured stays, and what is missing is measured again.
    lost = json.loads(json.dumps(results))
    del lost["rows"]["0.2"]["0.4"]["preset"]
    lost["rows"]["0.2"]["0.6"] = {}
    assert "| `radial` | – |" in results_text(lost | {"machine": MACHINE})
    assert training_free.run(*places, keep, earlier=lost)
    again = kept[-1]["rows"]["0.2"]["0.4"]["preset"]
    row = results["rows"]["0.2"]["0.4"]["preset"]
    assert again["psnr"] == row["psnr"]
    with pytest.raises(ValueError, match="earlier results are of the weights 0000"):
        training_free.run(*places, keep, earlier=results | {"weights": "0" * 64})
    assert list(results["rows"]) == [str(start) for start in STARTS]
    for by_density in results["rows"].values():
        for density, rows in by_density.items():
            for name in ("calibrated", "calibrated_on_clips"):
                assert rows[name]["density"] <= float(density)
            for name in ("preset", "preset_constant", "threshold"):
                assert rows[name]["density"] == pytest.approx(float(density), rel=0.3)
            assert "nearest of 2 that were tried" in rows["calibrated"]["about"]
            assert "without trials" in rows["calibrated_expected"]["about"]
            assert all(row["psnr"] > 0 for row in rows.values())
    text = results_text(results | {"machine": MACHINE})
    assert "| method | 40% |" in text
    assert f"| `preset` | {row['psnr']:.2f} |" in text
    assert "first fifth" in text
    assert "–" not in text
    assert "Calibrated on 2 videos of 3 steps, 2 tables tried at each density." in text
    draw_figure(results, tmp_path / "all.png")
    draw_figure(lost, tmp_path / "fewer.png")
    drawn, fewer = ((tmp_path / name).read_bytes() for name in ("all.png", "fewer.png"))
    assert drawn.startswith(b"\x89PNG")
    assert drawn != fewer


def test_lower_densities_are_calibrated_first(tmp_path, monkeypatch):
    """So that each is compared with all below it, in one state; of all videos in one call."""
    asked = []

    def calibrated(pipeline, prompts, *, density, state, **given):
        assert prompts == [{"batch_size": 3}]
        asked.append((density, state))
        return density

    monkeypatch.setattr(training_free, "calibrate_pipeline", calibrated)
    layer = SimpleNamespace(num_heads=2, head_dim=12)
    pipeline: Any = SimpleNamespace(transformer=SimpleNamespace(attentions=[layer]))
    amount = replace(TINY, densities=(0.4, 0.2, 0.5), calibration_videos=3)
    methods = training_free.Methods(pipeline, amount, tmp_path)
    assert methods._choice(0.4, 0.2) == 0.4
    assert methods._choice(0.2, 0.2) == 0.2
    assert asked == [(one, tmp_path / "calibration-0.2") for one in (0.2, 0.4, 0.5)]


def test_training_stops_in_time(tmp_path, monkeypatch):
    """By the time that its second chunk of steps takes."""
    monkeypatch.setattr(training_free_model, "CHUNK_STEPS", 2)
    amount = replace(TINY, train_steps=50)
    assert training_free_model.train(tmp_path / "dense", amount, torch.device("cpu"), 0.0) == 4


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
    """The preset's table, by buckets, and a pattern's."""
    levels = [1 - step / 30 for step in range(30)]
    for knee in (None, 1.2):
        table, delivered = preset_table(DENSITY, Grid(16, 32, 32), SHAPE, levels[6:], knee)
        assert delivered == pytest.approx(DENSITY, rel=0.02)
        dense = (table.bands == Band.DENSE).all((1, 2))
        assert (
            bands_at(dense[:, None], torch.tensor(levels))[:, 0].tolist()
            == [True] * 6 + [False] * 24
        )
        kept = bands_at(table.mid_tiles[:, 0], torch.tensor(levels[6:]))[:, 0].tolist()
        assert kept == sorted(kept, reverse=True)
        assert len(set(kept)) == (1 if knee is None else 3)
    pattern = single_patterns(DENSITY, Grid(16, 32, 32), SHAPE)["wide_summaries"].table
    assert pattern is not None
    found = guarded(pattern, 0.2)
    assert found.shape == (NUM_BUCKETS, 6, 6)
    assert (found.bands[:8] == Band.MID).all()
    assert (found.bands[8:] == Band.DENSE).all()
    assert torch.equal(guarded(pattern, 0.0).bands[9], pattern.bands[0])


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


@pytest.fixture(scope="module")
def decibels():
    """PSNR by method, and within by start and density, where it is measured."""
    results = read_results()
    assert results is not None
    found = {}
    for start, by_density in results["rows"].items():
        for density, rows in by_density.items():
            for name, row in rows.items():
                found.setdefault(name, {})[float(start), float(density)] = row["psnr"]
    return found


def apart(decibels, name, other):
    """By how much videos of the one are nearer than the other's, by start and density."""
    return {
        place: value - decibels[other][place]
        for place, value in decibels[name].items()
        if place in decibels[other]
    }


PUBLISHED = ("vsa_selection", "threshold", "radial", "topk", "window")


def test_more_density_is_nearer_where_the_page_says_so(decibels):
    falls = {
        (name, *more)
        for name, by_place in decibels.items()
        for one, more in pairwise(sorted(by_place))
        if one[0] == more[0] and by_place[one] >= by_place[more]
    }
    assert {place for place in falls if place[0] != "calibrated_on_clips"} == {
        ("calibrated", 0.0, 0.1)
    }
    ours = decibels["calibrated"]
    check_says(
        "docs/calibration.md",
        "It isn't with `calibrated` from 5% to 10% with all steps banded** "
        f"({ours[0.0, 0.05]:.1f} and {ours[0.0, 0.1]:.1f} dB)",
    )


def test_what_is_written_by_hand_is_what_the_results_give(decibels):
    page = "docs/calibration.md"
    assert all(
        max(decibels, key=lambda name: decibels[name].get(place, 0))
        in (("calibrated", "calibrated_even") if place[1] >= 0.2 else OURS)
        for place in decibels["preset"]
    )
    ahead = apart(decibels, "calibrated", "preset")
    assert len(ahead) == 10
    assert min(ahead, key=lambda place: ahead[place]) == (0.0, 0.1)
    assert max(ahead, key=lambda place: ahead[place]) == (0.2, 0.5)
    least, most = f"{min(ahead.values()):.1f}", f"{max(ahead.values()):.1f}"
    check_says(
        page,
        f"calibrated videos are {least} to {most} dB nearer to dense ones than the preset's",
        f"{least} dB (10%, all steps banded) to {most} dB (50%, the first fifth dense) ahead",
    )
    clips = apart(decibels, "calibrated_on_clips", "calibrated")
    nearer = {place: value for place, value in clips.items() if value > 0}
    assert set(nearer) == {(0.0, 0.1), (0.2, 0.1), (0.2, 0.05)}
    farther = [-value for (_, density), value in clips.items() if density >= 0.2]
    check_says(
        page,
        f"is {min(nearer.values()):.1f} to {max(nearer.values()):.1f} dB ahead of `calibrated` at",
        f"{min(farther):.1f} to {max(farther):.1f} dB behind it from 20% up",
    )
    published = {
        place: min(apart(decibels, "preset", name)[place] for name in PUBLISHED)
        for place in decibels["preset"]
    }
    behind = published.pop((0.2, 0.5))
    assert len(published) == 9
    check_says(
        page,
        f"at 9 of 10 settings, by {min(published.values()):.1f} to {max(published.values()):.1f}",
        f"`threshold` is {-behind:.1f} dB ahead of it at 50%",
    )
    blind = min(
        max(decibels[name][place] for name in PUBLISHED)
        - max(decibels[name][place] for name in ("radial", "window"))
        for place in decibels["radial"]
    )
    even = apart(decibels, "calibrated_even", "calibrated")
    assert {place for place, value in even.items() if value > 0} == {(0.0, 0.3), (0.2, 0.3)}
    check_says(
        page,
        f"`calibrated_even` at 30% ({even[0.0, 0.3]:.1f} and {even[0.2, 0.3]:.1f} dB)",
        f"lists alone are {blind:.1f} dB and more behind",
    )
    constant = apart(decibels, "threshold", "preset_constant")
    less = sorted(-value for value in constant.values() if value < 0)
    check_says(
        "DESIGN.md",
        f"model it was {less[0]:.1f} to {less[-1]:.1f} dB behind at {len(less)} of "
        f"{len(constant)} settings, but {constant[0.0, 0.5]:.1f} and, with the first fifth dense, "
        f"{constant[0.2, 0.5]:.1f} dB ahead at 50%",
    )


def test_the_aims_on_the_page(decibels):
    ours = {density: decibels["calibrated"][AIMED, density] for density in AIMS}
    assert [density for density, aim in AIMS.items() if ours[density] < aim] == [0.1, 0.05]
    assert [
        density for density, aim in AIMS.items() if decibels["preset"][AIMED, density] >= aim
    ] == [0.5]

    def listed(numbers):
        *first, last = numbers
        return f"{', '.join(first)} and {last}"

    check_says(
        "docs/calibration.md",
        f"Aimed at were {listed([f'{aim:.0f}' for aim in AIMS.values()])} dB at "
        f"{listed([f'{100 * density:.0f}%' for density in AIMS])}, with the first fifth dense. "
        f"`calibrated` has {listed([f'{value:.1f}' for value in ours.values()])}, all but",
    )


def test_seconds_on_the_page(decibels):
    results = read_results()
    assert results is not None
    every = [rows for by_density in results["rows"].values() for rows in by_density.values()]
    lost = apart(decibels, "preset_constant", "wide_summaries").values()
    fifth = {name: row["seconds"] for name, row in results["rows"]["0.0"]["0.2"].items()}
    tenth = results["rows"]["0.0"]["0.1"]["preset_constant"]
    dense = results["rows"]["0.0"]["0.2"]["preset"]["dense_seconds"]
    slow = min(rows["threshold"]["seconds"] for rows in every)
    assert slow > dense
    check_says(
        "docs/calibration.md",
        f"Tiles of 128 tokens lose {min(lost):.1f} to {max(lost):.1f} dB at equal FLOPs",
        f"takes {slow:.1f} s at least, longer than dense attention ({dense:.1f} s)",
    )
    check_says(
        "DESIGN.md",
        f"they lose {min(lost):.1f} to {max(lost):.1f} dB at equal FLOPs",
        f"at 20% 8 videos took {fifth['wide_summaries']:.2f} s and had "
        f"{decibels['wide_summaries'][0.0, 0.2]:.1f} dB",
        f"took {fifth['preset_constant']:.2f} s and had "
        f"{decibels['preset_constant'][0.0, 0.2]:.1f}, at 10% {tenth['seconds']:.2f} s and "
        f"{tenth['psnr']:.1f}, one run each",
    )
    clips = apart(decibels, "calibrated_on_clips", "calibrated")
    check_says(
        "DESIGN.md",
        f"it was {clips[0.0, 0.1]:.1f} dB ahead of `calibrate_pipeline` at 10% and "
        f"{-clips[0.0, 0.2]:.1f} dB behind at 20%",
    )


def test_methods_that_were_measured_are_explained_on_the_page():
    results = read_results()
    assert results is not None
    text = text_of("docs/calibration.md")
    for by_density in results["rows"].values():
        for rows in by_density.values():
            assert all(f"`{name}`" in text for name in rows)
    assert FIGURE.is_file()

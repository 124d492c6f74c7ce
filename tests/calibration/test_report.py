"""Reports: every number is there, reads back exactly, and pictures show it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from matplotlib.image import imread

from freqformer.calibration.figures import choice_figure, cost_curve
from freqformer.calibration.report import RECORD_NAME, read_calibration, write_report, write_table
from freqformer.routing import RoutingTable
from freqformer.routing.origin import SAMPLES


def test_a_report_says_what_was_measured_and_chosen(made_up, tmp_path):
    choice = write_report(made_up, 0.4, tmp_path / "new" / "table")
    folder = tmp_path / "new" / "table"
    table = RoutingTable.load(folder)
    assert torch.equal(table.bands, made_up.choose(0.4).table.bands)
    record = json.loads((folder / RECORD_NAME).read_text())
    assert record["tolerance"] == 0.4
    assert record["cost"] == choice.cost
    assert torch.equal(torch.tensor(record["errors"], dtype=torch.float64), made_up.errors)
    for bucket, layer, head in ((0, 0, 0), (2, 3, 4), (1, 2, 0)):
        name = record["chosen"][bucket][layer][head]
        place = record["candidates"].index(name)
        expected = 0.0 if name == "dense" else record["errors"][bucket][layer][head][place]
        assert record["chosen_error"][bucket][layer][head] == expected
        relative = record["flops_per_head"][place] / record["flops_per_head"][-1]
        assert record["chosen_cost"][bucket][layer][head] == relative


def test_another_tolerance_needs_no_model(made_up, tmp_path):
    write_report(made_up, 0.4, tmp_path)
    again = read_calibration(tmp_path)
    assert torch.equal(again.errors, made_up.errors)
    assert (again.candidates, again.grid) == (made_up.candidates, made_up.grid)
    assert torch.equal(again.choose(0.7).table.bands, made_up.choose(0.7).table.bands)


def colours(path) -> set[tuple[int, ...]]:
    pixels = torch.from_numpy(imread(path)[..., :3] * 255).round().long()
    return {tuple(row) for row in pixels.flatten(0, 1).unique(dim=0).tolist()}


BLUE, GREEN, VERMILION, GREY = (0, 114, 178), (0, 158, 115), (213, 94, 0), (118, 118, 118)


def test_pictures_show_the_numbers(made_up, tmp_path):
    for name, tolerance in (("a", 0.4), ("b", 0.4), ("c", 0.7)):
        write_report(made_up, tolerance, tmp_path / name)
    for picture in ("error_by_candidate.png", "allocation.png", "cost_by_tolerance.png"):
        first, same, other = ((tmp_path / name / picture).read_bytes() for name in "abc")
        assert first == same
        assert (first == other) == (picture == "error_by_candidate.png")
    assert {BLUE, GREEN, VERMILION} <= colours(tmp_path / "a" / "error_by_candidate.png")
    assert {BLUE, GREEN, VERMILION, GREY} <= colours(tmp_path / "a" / "allocation.png")
    for buckets in (1, 2):  # fewer panels than fit in a row, and one
        part = replace(made_up, errors=made_up.errors[:buckets])
        choice_figure(part.choose(0.4), tmp_path / "part.png")
        assert GREEN in colours(tmp_path / "part.png")


def test_the_cost_curve_falls_from_dense_to_the_cheapest(made_up):
    tolerances, costs = cost_curve(made_up, points=12)
    assert bool((tolerances.diff() > 0).all())
    assert bool((costs.diff() <= 0).all())
    assert costs[-1] == made_up.choose(1e6).cost
    assert costs[0] > 0.9


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:60],
        lambda text: text.replace("freqformer-calibration-1", "another"),
        lambda text: text.replace('"errors"', '"mistakes"'),
        lambda text: text.replace('"mid_tiles": [1, 2, 4]', '"mid_tiles": [1, 2]'),
        lambda text: text.replace('"compression": 16', '"compression": 1000'),
        lambda text: "[]",
    ],
)
@pytest.mark.parametrize("seal", [True, False])
def test_a_damaged_report_is_refused(made_up, tmp_path, damage, seal):
    write_table(made_up, 0.4, tmp_path)
    path = tmp_path / RECORD_NAME
    if not seal:
        # As earlier versions wrote it, without a checksum.
        record = {
            name: value
            for name, value in json.loads(path.read_text()).items()
            if name not in ("seal", "origin")
        }
        path.write_text(json.dumps(record))
        assert torch.equal(read_calibration(tmp_path).errors, made_up.errors)
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    with pytest.raises(ValueError, match="calibrate again, or give the folder") as error:
        read_calibration(tmp_path)
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(ValueError, match="can't be read"):
        read_calibration(tmp_path)


def test_every_flipped_bit_is_found_and_named(made_up, tmp_path):
    write_table(made_up, 0.4, tmp_path)
    path = tmp_path / RECORD_NAME
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 8 * len(whole) // 60 + 1):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        # The last of 17 digits may change and the number stay what it was.
        if _parsed(flipped) == _parsed(whole):
            continue
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=RECORD_NAME):
            read_calibration(tmp_path)


def _parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_a_table_made_from_it_knows_the_model(made_up, tmp_path):
    """F93."""
    origin = ((0.5,) * SAMPLES,) * made_up.errors.shape[1]
    write_table(replace(made_up, origin=origin), 0.4, tmp_path)
    assert read_calibration(tmp_path).choose(0.2).table.origin == origin
    assert RoutingTable.load(tmp_path).origin == origin

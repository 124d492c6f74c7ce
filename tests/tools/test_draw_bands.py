"""The picture of what a query sees is what the command draws, and shows what the plan says."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from xml.etree import ElementTree

from freqformer.plan import build_plan
from tools import draw_bands

PLAN = build_plan(draw_bands.GRID, draw_bands.CONFIG, num_heads=1, head_dim=16)
SVG = "{http://www.w3.org/2000/svg}"
REMEDY = "run `PYTHONPATH=src python -m tools.draw_bands`"


def test_the_committed_picture_is_what_the_command_draws(tmp_path: Path) -> None:
    draw_bands.main(tmp_path / "bands.svg")
    drawn = (tmp_path / "bands.svg").read_text(encoding="utf-8")
    assert drawn == draw_bands.PICTURE.read_text(encoding="utf-8"), REMEDY


def test_what_each_row_shows() -> None:
    picture = ElementTree.parse(draw_bands.PICTURE).getroot()
    rows = {group.get("id"): group for group in picture.findall(f"{SVG}g")}
    assert list(rows) == ["LOW", "MID", "HIGH", "DENSE", "default"]
    expected = {"LOW": (0, 180), "MID": (80, 0), "HIGH": (108, 0), "DENSE": (720, 0)}
    expected["default"] = (108, 180)
    for name, (tokens, low) in expected.items():
        paths = [path.get("d", "") for path in rows[name].iter(f"{SVG}path")]
        *seen, query = paths
        assert sum(path.count("z") for path in seen) == tokens, name
        assert sum(path.count("h0") for path in seen) == low, name
        assert query.count("z") == 1


def test_the_window_is_the_plans() -> None:
    seen = draw_bands.seen(PLAN)
    near = {
        (frame * 12 + row) * 12 + column
        for frame, row, column in product((1, 2, 3), range(4, 10), range(2, 8))
    }
    assert set(seen["HIGH"].tokens) == set(seen["default"].tokens) == near
    frame, row, column = draw_bands.QUERY
    assert (frame * 12 + row) * 12 + column in seen["MID"].tokens

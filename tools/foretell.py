"""How much sooner trained models are with frequency attention: by the simulator the table of
docs/diffusers.md and the rows of docs/families.md, and beside them what was measured, anew.

    python -m tools.foretell
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from freqformer.simulate import Scenario, load_model, scenario, simulate

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "diffusers.md"
FAMILIES_PAGE = ROOT / "docs" / "families.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- foretold: generated -->\n", "<!-- foretold: end -->\n"
FAMILY_END = "<!-- lengths: end -->\n"
HARDWARE = "h200"
DENSITIES = (0.2, 0.1)
VIDEOS = (
    ("wan2.1-1.3b", "5s@480p"),
    ("wan2.1-14b", "5s@480p"),
    ("wan2.1-14b", "5s@720p"),
    ("wan2.2-a14b", "5s@720p"),
    ("wan2.2-a14b", "20s@720p"),
    ("wan2.2-5b", "5s@720p"),
    ("hunyuanvideo", "5s@720p"),
    ("hunyuanvideo-1.5", "5s@480p"),
    ("hunyuanvideo-1.5", "5s@720p"),
    ("ltx-2", "10s@1080p"),
    ("minimax-h3", "5s@768p"),
    ("minimax-h3", "15s@768p"),
    ("cogvideox-5b", "6s@480p"),
)
HEAD = (
    "| model | video | tokens | dense | density 0.2: a banded step | the video | density 0.1: a "
    "banded step | the video |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)
MEASURED_HEAD = (
    "| one block, measured | tokens | dense | density 0.2 | density 0.1 |\n"
    "| --- | --- | --- | --- | --- |\n"
)
FILES = {"plugin_blocks": "eager", "plugin_blocks_compiled": "compiled"}
"""Results of benchmarks/plugin_blocks.py, and how its blocks ran."""


@dataclass(frozen=True)
class Lengths:
    """What a section of docs/families.md shows."""

    videos: tuple[tuple[str, str], ...]
    """Models of the simulator, and videos from short to long."""
    cases: tuple[str, ...] = ()
    """Of benchmarks/plugin_blocks.py."""


FAMILIES = {
    "wan": Lengths(
        (
            ("wan2.1-1.3b", "2s@480p"),
            ("wan2.1-1.3b", "5s@480p"),
            ("wan2.2-5b", "3s@720p"),
            ("wan2.2-5b", "5s@720p"),
            ("wan2.2-a14b", "1s@720p"),
            ("wan2.2-a14b", "2s@720p"),
            ("wan2.2-a14b", "5s@720p"),
        ),
        ("wan-14b-720p", "wan-14b-20s"),
    ),
    "hunyuan-video": Lengths((("hunyuanvideo", "2s@720p"), ("hunyuanvideo", "5s@720p"))),
    "hunyuan-video-1.5": Lengths(
        (("hunyuanvideo-1.5", "2s@720p"), ("hunyuanvideo-1.5", "5s@720p")), ("hunyuan-1.5-720p",)
    ),
    "ltx-video": Lengths((("ltx-video", "3s@720p"), ("ltx-video", "5s@720p"))),
    "ltx-2": Lengths((("ltx-2", "3s@1080p"), ("ltx-2", "5s@1080p"), ("ltx-2", "10s@1080p"))),
    "minimax-h3": Lengths(
        (("minimax-h3", "2s@768p"), ("minimax-h3", "5s@768p"), ("minimax-h3", "15s@768p")),
        ("minimax-h3-5s", "minimax-h3-long"),
    ),
    "cogvideox": Lengths((("cogvideox-5b", "3s@480p"), ("cogvideox-5b", "6s@480p"))),
}
"""By the name in the section's marks."""


def table(videos: Sequence[tuple[str, str]] = VIDEOS) -> str:
    """Rows by the simulator, in Markdown."""
    return HEAD + "".join(_row(name, video) for name, video in videos)


def lengths(family: str, results: Path = RESULTS) -> str:
    """Rows of a family by the simulator, and below them those that were measured, if any.

    Args:
        family: of `FAMILIES`.
        results: folder of benchmarks/plugin_blocks.py's results.
    """
    shown = FAMILIES[family]
    rows = [row for name in FILES for row in _measured(results / f"{name}.json", shown.cases)]
    below = f"\n{MEASURED_HEAD}{''.join(rows)}" if rows else ""
    return table(shown.videos) + below


def _measured(path: Path, cases: Sequence[str]) -> list[str]:
    """Rows of one file's cases; none where it isn't there."""
    if not path.is_file():
        return []
    measured = json.loads(path.read_text(encoding="utf-8"))["cases"]
    how = FILES[path.stem]
    return [
        _measured_row(f"{case}, {how}, {measured[case]['machine']['gpu']}", measured[case])
        for case in cases
        if case in measured
    ]


def _measured_row(title: str, case: dict[str, Any]) -> str:
    dense = case["rows"]["dense"]["ms"]
    cells = [title, f"{prod(case['grid']):,}", f"{dense:.1f} ms"]
    for density in DENSITIES:
        row = case["rows"].get(f"preset-{density:g}")
        cells.append(f"{row['ms']:.1f} ms, {dense / row['ms']:.2f} ×" if row else "–")
    return f"| {' | '.join(cells)} |\n"


@lru_cache
def _row(name: str, video: str) -> str:
    case = scenario(name, HARDWARE, video, preset="training-free")
    cells = [load_model(name).title, video, f"{case.tokens:,}"]
    for density in DENSITIES:
        found = simulate(_with_density(case, density))
        if len(cells) == 3:
            cells.append(f"{found.generation.dense_seconds / 60:.1f} min")
        cells += [f"{found.step.speedup:.1f} ×", f"{found.generation.speedup:.1f} ×"]
    return f"| {' | '.join(cells)} |\n"


def _with_density(case: Scenario, density: float) -> Scenario:
    assert case.dials is not None
    return replace(case, dials=replace(case.dials, density=density))


def family_begin(family: str) -> str:
    """The mark above a family's rows."""
    return f"<!-- lengths {family}: generated -->\n"


def between(text: str, begin: str, end: str) -> str:
    """What stands between two marks."""
    return text.split(begin)[1].split(end)[0]


def _replaced(text: str, begin: str, end: str, new: str) -> str:
    before, rest = text.split(begin)
    return before + begin + new + end + rest.split(end, 1)[1]


def main() -> None:
    rows = table()
    by_family = {family: lengths(family) for family in FAMILIES}
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_replaced(page, BEGIN, END, rows), encoding="utf-8")
    page = FAMILIES_PAGE.read_text(encoding="utf-8")
    for family, found in by_family.items():
        page = _replaced(page, family_begin(family), FAMILY_END, found)
    FAMILIES_PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()

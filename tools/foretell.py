"""How much sooner trained models are with frequency attention, by the simulator: the table of
docs/diffusers.md, anew.

    python -m tools.foretell
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from freqformer.simulate import Scenario, load_model, scenario, simulate

PAGE = Path(__file__).parents[1] / "docs" / "diffusers.md"
BEGIN, END = "<!-- foretold: generated -->\n", "<!-- foretold: end -->\n"
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


def table() -> str:
    """The rows, in Markdown."""
    return HEAD + "".join(_row(name, video) for name, video in VIDEOS)


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


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()

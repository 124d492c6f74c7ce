"""The README's table of speed, from committed results.

    PYTHONPATH=src:. python -m benchmarks.speed_tables

rewrites the text between the marks in the README. It takes `results/layers.json`, of whole layers
in the default configuration (`layers.py`), where that file exists, and else `results/layer.json`,
of the operation with a third of the heads in each band (`layer.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- speed: generated -->", "<!-- speed: end -->"
ROWS = ("default", "windows", "paper", "dense")
"""Configurations of a layer, in the order of the table's columns."""
PASSES = ("forward", "forward and backward")
LAYERS_NOTE = (
    "Whole layers with projections, forward / forward and backward in ms, {gpu}, bfloat16, "
    "head_dim 128, commit {commit}. `windows`: neither router nor LOW branch; `paper`: "
    "`FreqFormerConfig.paper()`; `dense`: cuDNN (`PYTHONPATH=src:. python benchmarks/layers.py`)."
)
OPERATION_NOTE = (
    "Attention without projections, forward, {gpu}, bfloat16, head_dim 128. **Not the default**, "
    "which is not timed yet: a third of the heads in each band. `dense`: cuDNN (`{command}`)."
)
SIZES = (65_536, 262_144, 1_048_576)
"""Tokens of the rows with 8 heads."""


def read(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """A result file, None where there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def layers_text(results: dict[str, Any]) -> str:
    """The table of whole layers; a dash for what was not measured."""
    head = ["tokens × heads", *ROWS, "dense / default"]
    lines = [size_line(size) for size in results["sizes"].values()]
    note = LAYERS_NOTE.format(
        gpu=results["machine"]["gpu"], commit=results["machine"]["commit"][:7]
    )
    return f"{note}\n\n{table(head, lines)}"


def size_line(size: dict[str, Any]) -> list[str]:
    """The cells of one size."""

    def ms(row: str, name: str) -> float | None:
        return size.get(name, {}).get(f"layer {row}", {}).get("ms")

    def both(cells: list[float | None]) -> str:
        return " / ".join("–" if cell is None else f"{cell:,.1f}" for cell in cells)

    times = {row: [ms(row, name) for name in PASSES] for row in ROWS}
    gains = [
        None if ours is None or dense is None else dense / ours
        for ours, dense in zip(times["default"], times["dense"], strict=True)
    ]
    place = f"{size['tokens']:,} × {size['heads']}"
    return [place, *map(both, times.values()), both(gains)]


def operation_text(results: dict[str, Any]) -> str:
    """The table of the operation alone, with the bands of its benchmark."""
    large = results["layers"]["hunyuan"]
    sizes = [{**large["bench"], "dense_ms": large["dense_ms"], "dense_measured": True}]
    sizes += [point for point in results["scaling"]["points"] if point["tokens"] in SIZES]

    def line(size: dict[str, Any]) -> list[str]:
        own, dense = size["layer_ms"], size["dense_ms"]
        shown = f"{dense:,.0f}" + ("" if size["dense_measured"] else " (from its rate)")
        place = f"{size['tokens']:,} × {size['heads']}"
        return [place, f"{own:.1f}", shown, f"{dense / own:.0f}"]

    head = ["tokens × heads", "bands, ms", "dense, ms", "dense / bands"]
    note = OPERATION_NOTE.format(**results["machine"])
    ordered = sorted(sizes, key=lambda size: size["tokens"])
    return f"{note}\n\n{table(head, map(line, ordered))}"


def speed_text(folder: Path = RESULTS) -> str:
    """The README's table with the sentence above it.

    Raises:
        FileNotFoundError: where neither file of results is there.
    """
    layers, operation = read("layers", folder), read("layer", folder)
    if layers is not None:
        return layers_text(layers)
    if operation is None:
        raise FileNotFoundError(f"{folder} has neither layers.json nor layer.json")
    return operation_text(operation)


def rebuilt(page: str, folder: Path = RESULTS) -> str:
    """The page with the text between its marks made anew.

    Raises:
        ValueError: for a page without the marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"page has no block {BEGIN} ... {END}; put one where the table belongs")
    return f"{before}{BEGIN}\n{speed_text(folder)}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(rebuilt(README.read_text(encoding="utf-8")), encoding="utf-8")

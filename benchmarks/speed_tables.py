"""The README's table of speed, from committed results.

    PYTHONPATH=src:. python -m benchmarks.speed_tables

rewrites the text between the marks in the README. It takes `results/layers.json`, of whole layers
in the default configuration, where that file exists, and else `results/layer.json`, of the
operation with a third of the heads in each band. layers.json has

    {"machine": {...}, "layers": [{"tokens": 115200, "heads": 24, "rows": {
        "default": {"forward_ms": 1.0, "forward_and_backward_ms": 3.0}, "windows": {...},
        "paper": {...}, "dense": {...}}}]}

where a row that could not be run is left out.
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
LAYERS_NOTE = (
    "Whole layers with projections, forward / forward and backward in ms, {gpu}, bfloat16, "
    "head_dim 128. `windows`: no LOW branch; `paper`: `FreqFormerConfig.paper()`; `dense`: cuDNN "
    "(`{command}`)."
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
    """The table of whole layers."""

    def times(row: dict[str, float] | None) -> str:
        if row is None:
            return "–"
        return f"{row['forward_ms']:.1f} / {row['forward_and_backward_ms']:.1f}"

    def line(size: dict[str, Any]) -> list[str]:
        rows = size["rows"]
        ours, dense = rows["default"], rows.get("dense")
        gains = "–" if dense is None else ratios(ours, dense)
        cells = [times(rows.get(name)) for name in ROWS]
        return [f"{size['tokens']:,} × {size['heads']}", *cells, gains]

    head = ["tokens × heads", *ROWS, "dense / default"]
    note = LAYERS_NOTE.format(**results["machine"])
    return f"{note}\n\n{table(head, map(line, results['layers']))}"


def ratios(ours: dict[str, float], dense: dict[str, float]) -> str:
    """How many times as long dense attention takes, forward / forward and backward."""
    parts = ("forward_ms", "forward_and_backward_ms")
    return " / ".join(f"{dense[part] / ours[part]:.1f}" for part in parts)


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

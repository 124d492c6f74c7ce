"""The tables of `peers.json`, as docs/performance.md shows them.

python benchmarks/peers_table.py [FILE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PASSES = ("forward", "backward")
ANY_ORDER = " *"
"""Marks a backward that doesn't promise the same bits at every run."""


LAYERS = """Queries of whole layers at 115,200 tokens × 24 heads, and uniform lists beside them:"""
WINDOW = """NATTEN's window at 115,200 tokens × 24 heads:"""


def tables(results: dict[str, Any]) -> str:
    """Useful TFLOP/s, forward / backward, by kernel and lists; shares of the rate on uniform lists
    for whole layers; milliseconds for NATTEN's window; – for what was not measured."""
    groups = results["groups"]
    random = {title: found for title, found in groups.items() if _kinds(found) == {"random"}}
    parts = [_rates(random)]
    for found in groups.values():
        if "layer" in _kinds(found):
            parts += [LAYERS, _layers(found)]
        if "window" in _kinds(found):
            parts += [WINDOW, _windows(found, results["published"])]
    return "\n\n".join(parts)


def _kinds(found: dict[str, Any]) -> set[str]:
    return {told["kind"] for told in found["works"].values()}


def _rates(groups: dict[str, Any]) -> str:
    titles = sorted(groups, key=lambda title: _order(groups[title]))
    lines = [
        _line(
            "useful TFLOP/s, forward / backward", *(title.replace(" x ", " × ") for title in titles)
        ),
        "|---" * (len(titles) + 1) + "|",
    ]
    for row in _names(groups.values()):
        cells = [_cell(groups[title], row, "tflops_per_s", "{:.0f}") for title in titles]
        lines.append(_line(row, *cells))
    return "\n".join(lines)


def _order(found: dict[str, Any]) -> tuple[int, float]:
    (told,) = found["works"].values()
    frames, *_ = told["grid"]
    return frames, -told["density"]


def _layers(found: dict[str, Any]) -> str:
    lines = [
        _line("forward / backward", "ms", "useful TFLOP/s", "of the rate on uniform lists"),
        "|---" * 4 + "|",
    ]
    for row in _names([found]):
        cells = [
            _cell(found, row, value, form)
            for value, form in (
                ("ms", "{:.2f}"),
                ("tflops_per_s", "{:.0f}"),
                ("share_of_uniform_rate", "{:.3f}"),
            )
        ]
        lines.append(_line(row, *cells))
    return "\n".join(lines)


def _windows(found: dict[str, Any], published: dict[str, Any]) -> str:
    lines = [_line("forward / backward", "ms", "useful TFLOP/s"), "|---" * 3 + "|"]
    for row in _names([found]):
        cells = (_cell(found, row, "ms", "{:.1f}"), _cell(found, row, "tflops_per_s", "{:.0f}"))
        lines.append(_line(row, *cells))
    for name, ms in published["ms"].items():
        title = f"{name}: published, {published['gpu']}, not measured here"
        lines.append(_line(title, f"{ms:.1f} / –", "–"))
    return "\n".join(lines)


def _names(groups: Any) -> list[str]:
    """Rows of which any pass was measured in any group, in the order of the first."""
    return list(
        dict.fromkeys(row for found in groups for name in PASSES for row in found.get(name, {}))
    )


def _cell(found: dict[str, Any], row: str, value: str, form: str) -> str:
    told = []
    for name in PASSES:
        values = found.get(name, {}).get(row, {})
        if value not in values:
            told.append("–")
            continue
        told.append(form.format(values[value]) + ("" if values["deterministic"] else ANY_ORDER))
    return "–" if set(told) == {"–"} else " / ".join(told)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    default = Path(__file__).parent / "results" / "peers.json"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    print(tables(json.loads(path.read_text(encoding="utf-8"))))
    print(f"\nA backward marked with{ANY_ORDER} doesn't promise the same bits at every run.")


if __name__ == "__main__":
    main()

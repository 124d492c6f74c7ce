"""The table of `layers.json`, as docs/performance.md shows it.

python benchmarks/layers_table.py [FILE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROWS = {
    "layer default": "**default**",
    "layer windows": "windows only, no router, no LOW branch",
    "layer thirds": "a third of the heads in each band",
    "layer paper": "`FreqFormerConfig.paper()`",
    "layer dense": "dense (cuDNN)",
    "operation default": "operation only: default",
    "operation windows": "operation only: windows",
    "operation thirds": "operation only: thirds",
    "operation dense": "operation only: dense (cuDNN)",
}
PASSES = ("forward", "forward and backward")


def table(results: dict[str, Any]) -> str:
    """Milliseconds by row and size, forward / forward and backward, and dense attention's time as a
    multiple of the row's; – for what was not measured."""
    sizes = results["sizes"]
    lines = [
        "| ms, forward / with backward (times faster than dense) | "
        + " | ".join(size.replace(" x ", " × ") for size in sizes)
        + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for row, title in ROWS.items():
        cells = [_cell(found, row) for found in sizes.values()]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict[str, Any], row: str) -> str:
    times = [found[name].get(row, {}).get("ms") for name in PASSES]
    if not any(times):
        return "–"
    told = " / ".join("–" if ms is None else _ms(ms) for ms in times)
    if "dense" in row:
        return told
    kind, _ = row.split(" ", 1)
    dense = [found[name].get(f"{kind} dense", {}).get("ms") for name in PASSES]
    ratios = [
        "–" if ms is None or whole is None else f"{whole / ms:.1f}"
        for ms, whole in zip(times, dense, strict=True)
    ]
    return f"{told} ({' / '.join(ratios)})"


def _ms(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}"


def main() -> None:
    default = Path(__file__).parent / "results" / "layers.json"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    print(table(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()

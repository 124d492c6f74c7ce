"""Pages and committed results, for tests that hold figures of the one against the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def text_of(page: str) -> str:
    """A page by its path from the root, on one line: where lines break says nothing."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def result(name: str) -> dict[str, Any]:
    """A committed result file of the benchmarks."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def check_says(page: str, *parts: str) -> None:
    """That a page has each of these parts."""
    text = text_of(page)
    for part in parts:
        assert part in text, f"{page} must say: {part}"

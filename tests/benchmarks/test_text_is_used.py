"""The figure on the page of training is that of the committed result."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_tells_the_accuracy_of_the_result() -> None:
    result = json.loads((ROOT / "benchmarks/results/text_is_used.json").read_text())
    right = sum(counts[place] for place, counts in enumerate(result["seen"].values()))
    assert sum(sum(counts) for counts in result["seen"].values()) == result["videos"] == 64
    assert result["accuracy"] == right / 64
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert f"{result['accuracy']:.0%} of 64 videos show what their caption says" in page
    assert f"guidance {result['guidance_scale']:g}" in page

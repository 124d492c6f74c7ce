"""What the benchmark of imports makes of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_medians_are_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import import_time

    def one(torch: float, other: float) -> dict[str, float]:
        return dict.fromkeys(import_time.CASES, other) | {"import torch": torch}

    cases = import_time.summary([one(2.0, 2.5), one(4.0, 4.25), one(3.0, 4.0)])
    assert cases["import torch"]["beyond_torch"] == 0
    found = cases["freqformer --help"]
    assert (found["seconds"], found["beyond_torch"]) == (4.0, 0.5)
    assert found["runs"] == [2.5, 4.25, 4.0]

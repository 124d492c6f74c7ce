"""Values of options."""

from __future__ import annotations

import pytest

from freqformer.cli.options import duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("540", 540.0), ("540s", 540.0), ("9m", 540.0), ("1.5h", 5400.0), (" 0.5s ", 0.5)],
)
def test_a_duration_has_its_unit_with_it(text: str, seconds: float) -> None:
    assert duration("--stop-after", text) == seconds

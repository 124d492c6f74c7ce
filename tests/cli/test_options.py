"""Values of options."""

from __future__ import annotations

import pytest

from freqformer.cli.options import duration, step_range


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("540", 540.0), ("540s", 540.0), ("9m", 540.0), ("1.5h", 5400.0), (" 0.5s ", 0.5)],
)
def test_a_duration_has_its_unit_with_it(text: str, seconds: float) -> None:
    assert duration("--stop-after", text) == seconds


def test_ranges_of_steps() -> None:
    assert step_range("--profile", "10-12") == [10, 12]
    assert step_range("--profile", "7") == [7, 7]
    for wrong in ("", "a-b", "3-", "-3", "1-2-3"):
        with pytest.raises(ValueError, match=r"--profile is .* like 10-12"):
            step_range("--profile", wrong)

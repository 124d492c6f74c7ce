"""The bar goes to standard error, and can be left out."""

from __future__ import annotations

import pytest

from freqformer._progress import progress_bar


def test_the_bar_counts_and_says_what(capsys: pytest.CaptureFixture) -> None:
    with progress_bar("measuring", 3, counted="batches", text="begun") as bar:
        assert bar.is_drawn
        assert not bar.on_terminal
        bar.advance()
        bar.update(completed=2)
        bar.update(text="nearly done")
        bar.print("a line")
    captured = capsys.readouterr()
    assert captured.out == ""
    shown = " ".join(captured.err.split())
    assert shown.startswith("a line")
    assert "measuring" in shown
    assert "2/3 batches" in shown
    assert shown.endswith("nearly done")


def test_a_share_is_shown_where_nothing_is_counted(capsys: pytest.CaptureFixture) -> None:
    with progress_bar("training", 1.0) as bar:
        bar.update(completed=0.25)
    assert "25%" in capsys.readouterr().err


def test_a_bar_that_is_not_drawn_says_nothing(capsys: pytest.CaptureFixture) -> None:
    with progress_bar("training", 1.0, enabled=False) as bar:
        assert not bar.is_drawn
        assert not bar.on_terminal
        bar.advance()
        bar.update(completed=0.5, text="x")
        bar.print("a line")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""

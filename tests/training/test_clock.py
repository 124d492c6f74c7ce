"""Progress by steps and by seconds, and the end of a session."""

from __future__ import annotations

import pytest
import torch

from freqformer.training.clock import RunClock
from freqformer.training.config import RunConfig


class Now:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    made = Now()
    monkeypatch.setattr("freqformer.training.clock.time", made)
    return made


def clock(**run: float) -> RunClock:
    return RunClock(RunConfig(max_steps=10, **run), torch.device("cpu"))  # type: ignore[arg-type]


def test_progress_is_that_of_the_steps(now: Now) -> None:
    one = clock()
    now.seconds += 5
    one.start(2, 30.0)
    assert (one.seconds, one.progress) == (30, 0.2)
    now.seconds += 4
    one.advance(3)
    assert (one.seconds, one.progress, one.session_is_over) == (34, 0.3, False)
    one.advance(20)
    assert one.progress == 1


def test_progress_follows_the_seconds_where_these_are_ahead(now: Now) -> None:
    one = clock(max_seconds=40.0)
    one.start(0, 30.0)
    assert one.progress == 0.75
    now.seconds += 20
    one.advance(1)
    assert one.progress == 1


def test_a_session_is_over_by_its_own_seconds(now: Now) -> None:
    one = clock(stop_after_seconds=10.0)
    now.seconds += 6
    # What earlier sessions took does not count, and the making of the model does.
    one.start(0, 300.0)
    assert not one.session_is_over
    now.seconds += 4
    one.advance(1)
    assert one.session_is_over
    assert one.progress == 0.1

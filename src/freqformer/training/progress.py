"""What a run shows of itself on standard error while it trains."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from freqformer._progress import ProgressBar, progress_bar
from freqformer.training.config import RunConfig

if TYPE_CHECKING:
    from freqformer.training.report import StepReport

LONG = 600.0
"""Seconds from which on a run that will take so long says so."""
STEPS_TO_MEASURE = 3
SECONDS_TO_MEASURE = 20.0
"""A step that takes so long is measure enough."""
SECONDS_BETWEEN_LINES = 60.0
"""Where standard error is a file, which a bar can't be drawn in."""
SMOOTHING = 0.95
_MINUTE, _HOUR, _DAY = (60, 3600, 86400)


class ShownProgress:
    """The bar of a run.

    Args:
        run: how long the run is.
        device: that it trains on.
        bar: that is drawn, or not.
    """

    def __init__(self, run: RunConfig, device: torch.device, bar: ProgressBar) -> None:
        self._run, self._device, self._bar = run, device, bar
        self._loss: float | None = None
        self._unread: deque[StepReport] = deque()
        # A first step that compiles, or loads kernels, says nothing of the next.
        self._pace = _Pace(first_counts=device.type == "cpu" and not run.compile)
        self._told, self._line = False, -SECONDS_BETWEEN_LINES

    def begin(self, seconds: float) -> None:
        """The first step begins, after so many seconds of training in earlier sessions."""
        self._pace.begin(seconds)
        self._bar.update(text="first step under way")

    def show(self, report: StepReport) -> None:
        """One more step is done."""
        if not self._bar.is_drawn:
            return
        self._smooth(report)
        self._pace.add(report.seconds)
        pace = self._pace.seconds_per_step
        loss = "" if self._loss is None else f"  loss {self._loss:.4f}"
        text = f"step {report.step}{loss}  {pace:.2g} s a step"
        self._bar.update(completed=report.progress, text=text)
        if not self._told and self._pace.is_measured:
            self._told = True
            estimate = foretold(self._run, report, pace, self._device)
            if estimate is not None:
                self._bar.print(estimate, style="yellow")
        now = time.monotonic()
        if not self._bar.on_terminal and now - self._line >= SECONDS_BETWEEN_LINES:
            self._line = now
            self._bar.print(f"training  {100 * report.progress:.0f}%  {text}")

    def _smooth(self, report: StepReport) -> None:
        """Take in the losses that the run has read; asking for others would wait for a GPU."""
        self._unread.append(report)
        while self._unread and self._unread[0].numbers.are_read:
            loss = self._unread.popleft().loss
            smooth = loss if self._loss is None else self._loss
            self._loss = SMOOTHING * smooth + (1 - SMOOTHING) * loss


class _Pace:
    """Seconds that a step takes; the first one counts only while it is alone."""

    def __init__(self, *, first_counts: bool) -> None:
        self._first_counts = first_counts
        self._begun = self._first = self._last = 0.0
        self._steps = 0

    def begin(self, seconds: float) -> None:
        self._begun = self._first = self._last = seconds

    def add(self, seconds: float) -> None:
        self._steps += 1
        self._last = seconds
        if self._steps == 1:
            self._first = seconds

    @property
    def seconds_per_step(self) -> float:
        if self._steps == 1:
            return self._first - self._begun
        return (self._last - self._first) / (self._steps - 1)

    @property
    def is_measured(self) -> bool:
        if self._steps == 1 and not self._first_counts:
            return False
        return self._steps >= STEPS_TO_MEASURE or self._last - self._begun >= SECONDS_TO_MEASURE


def foretold(run: RunConfig, report: StepReport, pace: float, device: torch.device) -> str | None:
    """A line on how long the rest of a run will take; None where that is not long.

    Args:
        run: how long it is.
        report: of the last step.
        pace: seconds of a step.
        device: that it trains on.
    """
    steps = run.max_steps - report.step
    left = steps * pace
    if run.max_seconds is not None:
        left = min(left, run.max_seconds - report.seconds)
    if left < LONG:
        return None
    if device.type == "cpu":
        where, remedy = "this CPU", ": a GPU is meant for runs like this one"
    else:
        where, remedy = torch.cuda.get_device_name(device), ""
    steps_left = f"{pace:.2g} s a step, {steps:,} steps to go"
    return f"about {spoken(left)} on {where} ({steps_left}){remedy}"


def spoken(seconds: float) -> str:
    """A duration in the unit that people would say it in."""
    units = ((_DAY, "days"), (_HOUR, "h"), (_MINUTE, "minutes"))
    for size, unit in units:
        # "90 minutes" and "36 h" are said, "60 h" is days.
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def progress_shown(
    run: RunConfig, device: torch.device, *, enabled: bool
) -> Iterator[ShownProgress]:
    """A bar on standard error from before the first step to the end; none where it isn't
    enabled."""
    with progress_bar("training", 1.0, enabled=enabled, text="starting") as bar:
        yield ShownProgress(run, device, bar)

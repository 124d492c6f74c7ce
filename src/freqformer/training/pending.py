"""Reports of steps whose numbers are still on the device, read many at once: a host that reads
every step waits for the device in every step."""

from __future__ import annotations

import torch

from freqformer.training.report import StepReport


class PendingReports:
    """Keeps reports until their numbers are read together.

    Args:
        every: reports from which on they are to be read.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._waiting: list[StepReport] = []

    @property
    def are_due(self) -> bool:
        """Whether there are so many that they are to be read."""
        return len(self._waiting) >= self._every

    def add(self, report: StepReport) -> None:
        """One more, in the order of steps."""
        self._waiting.append(report)

    def read(self) -> list[StepReport]:
        """All that waited, in order, their numbers read at once; none waits any more."""
        waiting = self._waiting
        self._waiting = []
        unread = [report.numbers for report in waiting if not report.numbers.are_read]
        if unread:
            values = torch.stack([numbers.on_device for numbers in unread]).tolist()
            for numbers, row in zip(unread, values, strict=True):
                numbers.take(row)
        return waiting

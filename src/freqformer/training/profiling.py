"""A profile of some steps, by torch's profiler, for ui.perfetto.dev."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from freqformer._files import writing_file
from freqformer.training.report import TrainingError

logger = logging.getLogger(__name__)

PROFILE_FOLDER = "profile"


class StepProfiler:
    """Records the steps of a session that were asked for, each under its name.

    Args:
        steps: the first and the last one, counted from 1; None records none.
        folder: of the run.
        main: whether this process is the one that writes.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, *, main: bool) -> None:
        self._steps = steps if main else None
        self._folder = folder
        self._profile: Any = None

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Around a step, counted from 1."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            yield
            return
        if self._profile is None:
            self._profile = profile(activities=_activities())
            self._profile.start()
        with record_function(f"step {step}"):
            yield
        if step == self._steps[1]:
            self.finish()

    def finish(self) -> Path | None:
        """Write what was recorded, whole or not at all; returns the file, None where there is
        nothing to write.

        Raises:
            TrainingError: where it can't be written.
        """
        asked, recorded = self._steps, self._profile
        self._steps = self._profile = None
        if asked is None:
            return None
        first, last = asked
        if recorded is None:
            logger.warning("no profile: steps %d to %d were not done in this session", first, last)
            return None
        recorded.stop()
        target = self._folder / PROFILE_FOLDER / f"steps-{first}-{last}.json.gz"
        with writing_file(target, error=TrainingError) as path:
            recorded.export_chrome_trace(str(path))
        logger.warning("profile of steps %d to %d: %s, for ui.perfetto.dev", first, last, target)
        return target


def _activities() -> list[ProfilerActivity]:
    on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return [ProfilerActivity.CPU, *on_gpu]

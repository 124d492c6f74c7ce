"""How far a run is: by steps, by seconds of training, and by those of this session."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from freqformer._optional import needs
from freqformer.training.config import RunConfig

with needs("train"):
    from accelerate import PartialState
    from accelerate.utils import broadcast


class RunClock:
    """Seconds and progress of a run, the same in all of its processes.

    Args:
        run: how long the run, and this session of it, may be.
        device: that the run trains on, for the processes to agree.
    """

    def __init__(self, run: RunConfig, device: torch.device) -> None:
        self._run, self._device = run, device
        self._session_began = self._began = time.perf_counter()
        self.seconds = 0.0
        """Of training so far, earlier sessions included."""
        self.progress = 0.0
        """Share of the run that is done, from 0 to 1."""
        self.session_is_over = False

    def start(self, step: int, seconds: float) -> None:
        """Go on from a step, after so many seconds of training in earlier sessions."""
        self._began = time.perf_counter() - seconds
        self.advance(step)

    def advance(self, step: int) -> None:
        """Look at the time, with so many steps done."""
        run, now = self._run, time.perf_counter()
        seconds, session = now - self._began, now - self._session_began
        by_clock = run.max_seconds is not None or run.stop_after_seconds is not None
        if by_clock and PartialState().num_processes > 1:
            # One clock for all processes, else some would stop a step before others.
            shared = broadcast(torch.tensor([seconds, session], device=self._device))
            assert isinstance(shared, Tensor)
            seconds, session = shared.tolist()
        progress = step / run.max_steps
        if run.max_seconds is not None:
            progress = max(progress, seconds / run.max_seconds)
        limit = run.stop_after_seconds
        self.session_is_over = limit is not None and session >= limit
        self.seconds, self.progress = seconds, min(progress, 1.0)

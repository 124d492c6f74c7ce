"""Which steps of a sampler are banded: percentages of its steps, found by noise level.

A transformer is called once, twice or more often a step, by guidance and by what a cache skips, so
calls say nothing of steps. The scheduler's timesteps do: a step has been reached when as many of
them lie above the call's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor

ROUNDING = 1e-9
Schedule = Callable[[Any, torch.dtype | None], Tensor]
"""From a scheduler, and the dtype that rounds timesteps, to what calls are given at its steps."""
REMEDY = "pass the pipeline, or scheduler=pipe.scheduler, or start_percent=0 and end_percent=1"


def plain_schedule(scheduler: Any, dtype: torch.dtype | None) -> Tensor:
    """The timesteps of a scheduler's steps, (S,) float64 on the host, rounded to the dtype."""
    return rounded(torch.as_tensor(scheduler.timesteps), dtype)


def rounded(timesteps: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Timesteps as a transformer sees them that takes them in this dtype: float64 on the host."""
    timesteps = timesteps.detach().cpu()
    return (timesteps if dtype is None else timesteps.to(dtype)).double()


@dataclass(frozen=True)
class Read:
    """Schedules on the host."""

    timesteps: Any
    """The scheduler's own, of one run."""
    schedules: dict[tuple[torch.dtype | None, Schedule], Tensor]
    """By the dtype that rounded them, and what made them."""


class SamplerSteps:
    """The part of a sampler's steps that is banded.

    Args:
        start, end: shares of the steps, 0 to 1: those before `start` and from `end` on are dense.
        pipeline: whose scheduler it is at every call, also when it is given another; or None.
        scheduler: where there is no pipeline, or it is gone.
    """

    def __init__(self, start: float, end: float, pipeline: Any = None, scheduler: Any = None):
        self.start = start
        self.end = end
        self._pipeline = None if pipeline is None else ref(pipeline)
        self._scheduler = scheduler if pipeline is None else pipeline.scheduler
        self._read: Read | None = None

    @property
    def all_steps(self) -> bool:
        """Whether every step is banded, so that no scheduler is asked."""
        return self.start <= 0 and self.end >= 1

    @property
    def known(self) -> bool:
        """Whether a scheduler says which steps there are."""
        return self._scheduler is not None

    @property
    def scheduler(self) -> Any:
        """The sampler's scheduler now.

        Raises:
            ValueError: where it is not known, as in what was pickled.
        """
        pipeline = None if self._pipeline is None else self._pipeline()
        if pipeline is not None:
            self._scheduler = pipeline.scheduler
        if self._scheduler is None:
            raise ValueError(
                f"start_percent is {self.start} and end_percent {self.end}, and no scheduler says "
                "which steps these are, as in a model read from a pickle: call "
                "disable_frequency_attention, and enable it again with its pipeline or scheduler"
            )
        return self._scheduler

    def shares(self) -> tuple[int, int]:
        """How many steps of the scheduler's run are banded, and how many there are."""
        banded = self.banded()
        return int(banded.sum()), len(banded)

    def dense(
        self,
        timestep: Tensor,
        dtype: torch.dtype | None,
        schedule_of: Schedule = plain_schedule,
    ) -> list[bool]:
        """Whether each sample's step is left to the model's own attention.

        Args:
            timestep: of every sample, float64 (B,) on the host, as the family gives it.
            dtype: in which the transformer was given it; what rounded it rounds the schedule too.
            schedule_of: as `Family.schedule`.
        """
        if self.all_steps:
            return [False] * len(timestep)
        schedule = self.timesteps(dtype, schedule_of)
        rising = bool(schedule[0] < schedule[-1])  # where 1 is clean, as MiniMax-H3 counts
        ahead = (timestep[:, None] - schedule) if rising else (schedule - timestep[:, None])
        done = (ahead > ROUNDING).double().mean(1)
        return (~self._inside(done)).tolist()

    def banded(self) -> Tensor:
        """Whether each step of `timesteps` is banded: bool (S,)."""
        steps = len(self.timesteps())
        return self._inside(torch.arange(steps) / steps)

    def _inside(self, done: Tensor) -> Tensor:
        """Whether steps with this share of them done before are banded."""
        inside = done >= self.start - ROUNDING
        return inside & (done < self.end - ROUNDING) if self.end < 1 else inside

    def timesteps(
        self, dtype: torch.dtype | None = None, schedule_of: Schedule = plain_schedule
    ) -> Tensor:
        """What calls are given at the scheduler's steps, float64 (S,) on the host, read once for
        every run; with arguments as those of `dense`."""
        scheduler = self.scheduler
        if scheduler.timesteps is None:
            raise ValueError(
                f"scheduler is a {type(scheduler).__name__} without timesteps, by which "
                "steps are counted: call its set_timesteps before the transformer, as pipelines do"
            )
        if self._read is None or self._read.timesteps is not scheduler.timesteps:
            self._read = Read(scheduler.timesteps, {})
        read = self._read.schedules
        if (dtype, schedule_of) not in read:
            read[dtype, schedule_of] = schedule_of(scheduler, dtype)
        return read[dtype, schedule_of]

    def __deepcopy__(self, memo: dict[int, Any]) -> SamplerSteps:
        """Of a whole pipeline that is copied, its copy's scheduler; of a transformer alone the same
        one."""
        pipeline = None if self._pipeline is None else self._pipeline()
        pipeline = memo.get(id(pipeline), pipeline)
        scheduler = memo.get(id(self._scheduler), self._scheduler)
        copied = SamplerSteps(self.start, self.end, scheduler=scheduler)
        copied._pipeline = None if pipeline is None else ref(pipeline)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return SamplerSteps, (self.start, self.end)


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError for what has no timesteps to count steps by."""
    if not hasattr(scheduler, "timesteps"):
        raise ValueError(
            f"scheduler is a {type(scheduler).__name__}, which has no timesteps; a scheduler of "
            f"diffusers is allowed: {REMEDY}"
        )

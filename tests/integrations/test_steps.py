"""Percentages are of the sampler's steps: whatever the schedule, the guidance and the rounding."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from freqformer.integrations.diffusers.steps import SamplerSteps, check_scheduler

FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS = {
    "euler": FlowMatchEulerDiscreteScheduler(),
    "euler, shift 8": FlowMatchEulerDiscreteScheduler(shift=8.0),
    "unipc": UniPCMultistepScheduler(flow_shift=3.0, **FLOW),
    "dpm++": DPMSolverMultistepScheduler(flow_shift=5.0, **FLOW),
}


def dense_steps(steps: SamplerSteps, scheduler: Any, dtype: torch.dtype | None = None) -> list:
    timesteps = scheduler.timesteps if dtype is None else scheduler.timesteps.to(dtype)
    return [steps.dense(t[None].double(), dtype)[0] for t in timesteps]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers' DPM++
@pytest.mark.parametrize("count", [4, 8, 30, 50])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_first_and_last_steps_are_dense(name: str, count: int) -> None:
    scheduler = SCHEDULERS[name]
    scheduler.set_timesteps(count)
    steps = SamplerSteps(0.2, 0.9, scheduler=scheduler)
    found = dense_steps(steps, scheduler)
    first, last = -(-count // 5), count - (-(-9 * count // 10))
    assert found == [True] * first + [False] * (count - first - last) + [True] * last
    assert steps.shares() == (count - first - last, count)


def test_a_call_between_two_steps_belongs_to_the_next() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    steps = SamplerSteps(0.3, 1.0, scheduler=scheduler)
    third = float(scheduler.timesteps[2])
    assert steps.dense(torch.tensor([third + 1, third - 1, 3.0]).double(), None) == [
        True,
        False,
        False,
    ]


def test_timesteps_rounded_to_bfloat16_are_those_of_their_step() -> None:
    """HunyuanVideo's pipeline rounds them; of two that became one the first counts."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler.set_timesteps(50)
    steps = SamplerSteps(0.4, 1.0, scheduler=scheduler)
    assert sum(dense_steps(steps, scheduler, torch.bfloat16)) == 20
    assert sum(dense_steps(steps, scheduler, torch.float16)) == 20


def test_the_schedule_of_the_run_counts() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipeline = _Pipeline(scheduler)
    steps = SamplerSteps(0.5, 1.0, pipeline)
    level = torch.tensor([700.0]).double()
    assert steps.dense(level, None) == [True]
    scheduler.set_timesteps(20)
    assert steps.dense(level, None) == [True]
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4])
    assert steps.dense(level, None) == [False]
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline.scheduler.set_timesteps(20)
    assert steps.dense(level, None) == [False]
    assert steps.dense(torch.tensor([800.0]).double(), None) == [True]


class _Pipeline:
    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


def test_copies_of_a_pipeline_have_their_own_scheduler() -> None:
    pipeline: Any = _Pipeline(FlowMatchEulerDiscreteScheduler())
    pipeline.steps = SamplerSteps(0.5, 1.0, pipeline)
    copied = copy.deepcopy(pipeline)
    assert copied.steps.scheduler is copied.scheduler
    assert copied.scheduler is not pipeline.scheduler
    assert copy.deepcopy(pipeline.steps).scheduler is pipeline.scheduler
    scheduler = pipeline.scheduler
    steps = pipeline.steps
    del pipeline
    assert steps.scheduler is scheduler


def test_a_pickle_says_that_its_scheduler_is_gone() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    lost = pickle.loads(pickle.dumps(SamplerSteps(0.5, 1.0, scheduler=scheduler)))
    with pytest.raises(ValueError, match=r"no scheduler says which steps .* enable it again"):
        lost.dense(torch.tensor([1.0]).double(), None)
    every = pickle.loads(pickle.dumps(SamplerSteps(0.0, 1.0)))
    assert every.dense(torch.tensor([1.0, 2.0]).double(), None) == [False, False]


def test_what_has_no_timesteps_is_refused() -> None:
    steps = SamplerSteps(0.5, 1.0, scheduler=SimpleNamespace(timesteps=None))
    with pytest.raises(ValueError, match="is a SimpleNamespace without timesteps"):
        steps.dense(torch.tensor([1.0]).double(), None)
    with pytest.raises(ValueError, match="scheduler is a SimpleNamespace, which has no timesteps"):
        check_scheduler(SimpleNamespace(sigmas=[1.0]))

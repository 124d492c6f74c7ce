"""The runs of one calibration of a pipeline, and what they say."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from freqformer._interrupt import StopRequest, between_steps
from freqformer._progress import progress_bar
from freqformer.calibration.choice import Calibration
from freqformer.calibration.pipelines.choice import (
    BUCKETS,
    PipelineCalibration,
    bucket_rows,
    probe_column,
)
from freqformer.calibration.pipelines.energies import COARSE, Energies
from freqformer.calibration.pipelines.runs import Runs
from freqformer.calibration.pipelines.settings import CalibrationSettings
from freqformer.calibration.pipelines.state import State, copied, squared_error
from freqformer.calibration.pipelines.steps import (
    Step,
    measured_steps,
    probed_steps,
    step_weights,
)
from freqformer.calibration.pipelines.subjects import Subject, banded, measuring, origins_of
from freqformer.config import Band
from freqformer.routing import RoutingTable


class Work:
    """The runs of one calibration.

    Args:
        subjects: the transformers.
        runs: of their pipeline.
        settings: what is measured.
        folder: of the state, or None.

    Raises:
        ValueError: as `State`.
    """

    def __init__(
        self,
        subjects: dict[str, Subject],
        runs: Runs,
        settings: CalibrationSettings,
        folder: Path | None,
    ) -> None:
        self.subjects = subjects
        self.runs = runs
        self.settings = settings
        self.origins = origins_of(subjects)
        energies = {
            part: subject.energies(settings.candidates) for part, subject in subjects.items()
        }
        made_with = {
            "model": self.origins,
            "prompts": runs.described,
            "settings": asdict(settings),
            "measure": {"coarse": COARSE},
        }
        self.state = State(energies, made_with, folder)

    def finish(self, progress: bool) -> None:
        """Do every run that the state lacks."""
        stopping = (
            between_steps("finishing the run") if self.state.folder else nullcontext(StopRequest())
        )
        with (
            torch.no_grad(),
            progress_bar("calibrating", None, enabled=progress, counted="runs") as bar,
            stopping as stop,
        ):
            while self._one():
                bar.advance()
                self.state.keep()
                if stop.asked:
                    raise stop.interrupted(
                        f" after a run, which {self.state.folder} keeps: the same call goes on"
                    )

    def _one(self) -> bool:
        """Do the next run; False where there is none."""
        state = self.state
        if len(state.latents) < len(self.runs):
            self._measure(len(state.latents))
            return True
        for step in probed_steps(self._steps(), self.settings.probes):
            for prompt in range(len(self.runs)):
                if (step, prompt) not in state.final:
                    with banded(self.subjects, {step.part: self._probe_table(step)}):
                        found = self.runs.latents(prompt)
                    error = squared_error(found, state.latents[prompt])
                    state.final[step, prompt] = error
                    return True
        return False

    def _measure(self, prompt: int) -> None:
        energies = self.state.energies
        before = {part: copied(sums) for part, sums in energies.items()}
        try:
            with measuring(self.subjects, energies):
                latents = self.runs.latents(prompt)
        except BaseException:
            for part, sums in energies.items():
                sums.by_level = before[part]
            raise
        if not bool(latents.isfinite().all()):
            raise ValueError(
                f"prompt {prompt} ends in latents that aren't finite; try another dtype, or look "
                "at the model"
            )
        self.state.latents.append(latents)

    def _steps(self) -> list[Step]:
        steps = measured_steps(self.state.energies, self.settings.start_percent)
        if not steps:
            raise ValueError(
                f"steps is {self.settings.steps} and start_percent "
                f"{self.settings.start_percent}, which leaves no step to be banded; raise steps"
            )
        return steps

    def _probe_table(self, step: Step) -> RoutingTable:
        """Only this step banded, all its heads by the probed candidate."""
        energies = self.state.energies[step.part]
        candidates = energies.candidates
        assert candidates is not None
        count = candidates.mid_tiles[self._probe_column(energies) - 1]
        levels = sorted(energies.by_level, reverse=True)
        own = bucket_rows(levels) == levels.index(step.level)
        bands = torch.full((BUCKETS, energies.layers, energies.heads), Band.DENSE.value)
        bands[own] = Band.MID.value
        return RoutingTable(bands, torch.full_like(bands, count), candidates.config)

    def _probe_column(self, energies: Energies) -> int:
        candidates = energies.candidates
        assert candidates is not None
        return probe_column(_costs(energies), len(candidates.mid_tiles))

    def calibration(self) -> PipelineCalibration:
        """What all runs say."""
        steps = self._steps()
        by_part = self.state.energies
        first = by_part[steps[0].part]
        for part in {step.part for step in steps}:
            other = by_part[part]
            if (other.layers, other.heads, other.grid) != (first.layers, first.heads, first.grid):
                raise ValueError(
                    f"pipe's {part} has other layers, heads or tokens than its {steps[0].part}; "
                    "calibrate them apart, each in a pipeline of its own"
                )
        assert first.candidates is not None
        assert first.grid is not None
        measured = torch.stack([by_part[step.part].by_level[step.level] for step in steps])
        column = self._probe_column(first)
        local = {
            step: float(energy[..., column].sum())
            for step, energy in zip(steps, measured, strict=True)
        }
        probed: dict[Step, float] = {}
        for (step, _), error in self.state.final.items():
            probed[step] = probed.get(step, 0.0) + error
        weights = step_weights(steps, probed, local)
        total = sum(float(one.double().square().sum()) for one in self.state.latents)
        errors = (measured * (weights / total)[:, None, None, None]).sqrt()
        if not bool(errors.isfinite().all()):
            raise ValueError(
                "pipe gives values that aren't finite in its layers; check its weights and dtype"
            )
        costs = _costs(first)
        return PipelineCalibration(
            Calibration(errors, costs, first.candidates, first.grid), steps, self.origins
        )


def _costs(energies: Energies) -> torch.Tensor:
    """FLOPs of one head as every candidate, and as DENSE at the end."""
    assert energies.candidates is not None
    assert energies.grid is not None
    costs = energies.candidates.costs(
        energies.grid, num_heads=1, head_dim=1, num_text_tokens=energies.exact
    )
    return torch.tensor(costs, dtype=torch.float64)

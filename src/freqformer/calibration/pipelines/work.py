"""The runs of one calibration of a pipeline, and what they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch

from freqformer._interrupt import StopRequest, between_steps
from freqformer._progress import progress_bar
from freqformer.calibration.choice import Calibration
from freqformer.calibration.pipelines.by_step import priced
from freqformer.calibration.pipelines.choice import (
    BUCKETS,
    PipelineCalibration,
    PipelineChoice,
    Tried,
    bucket_rows,
    probe_column,
)
from freqformer.calibration.pipelines.energies import COARSE, Energies, felt_energy
from freqformer.calibration.pipelines.runs import Runs
from freqformer.calibration.pipelines.settings import CalibrationSettings
from freqformer.calibration.pipelines.state import (
    State,
    TriedTable,
    copied,
    nearness_of,
    squared_error,
    told_error,
)
from freqformer.calibration.pipelines.steps import (
    Step,
    measured_steps,
    probed_steps,
    step_weights,
)
from freqformer.calibration.pipelines.subjects import Subject, banded, measuring, origins_of
from freqformer.calibration.pipelines.trials import Trial, tried_trials
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
            "settings": {
                name: value for name, value in asdict(settings).items() if name != "trials"
            },
            "measure": "energies of tokens, and of means over tiles",
        }
        self.state = State(energies, made_with, folder)

    def finish(self, progress: bool) -> None:
        """Do every run of the measurement that the state lacks."""
        with self._running("calibrating", None, progress) as done:
            while self._one():
                done()

    @contextmanager
    def _running(
        self, title: str, total: int | None, progress: bool
    ) -> Iterator[Callable[..., None]]:
        """A bar, and what is to be called after every run: it notes the state, and ends the block
        where a signal asked for that. With `known` the run was one of an earlier call. What is done
        is kept however the block ends."""
        stopping = (
            between_steps("finishing the run") if self.state.folder else nullcontext(StopRequest())
        )
        with (
            torch.no_grad(),
            progress_bar(title, total, enabled=progress, counted="runs") as bar,
            stopping as stop,
        ):

            def done(known: bool = False) -> None:
                bar.advance()
                if known:
                    return
                self.state.note()
                if stop.asked:
                    raise stop.interrupted(
                        f" after a run, which {self.state.folder} keeps: the same call goes on"
                    )

            try:
                yield done
            finally:
                self.state.keep()

    def nearest(
        self, calibration: PipelineCalibration, density: float, progress: bool
    ) -> PipelineChoice:
        """The tables of at most a density whose videos are nearest, of all that are tried for it
        and of those that the state has from earlier calls.

        Args:
            calibration: what the measurement says.
            density: share of dense attention's FLOPs.
            progress: whether to draw a bar.

        Raises:
            ValueError: for a density that no choice keeps to, and where no table gives finite
                latents.
        """
        limit = self.settings.trials
        earlier = self._earlier(calibration, density)
        with self._running("trying tables", limit * len(self.runs), progress) as done:
            pairs = tried_trials(
                calibration, density, limit, lambda trial: self._nearness(calibration, trial, done)
            )
        keys = {trial.key for trial, _ in pairs}
        compared = [(trial.table, tried) for trial, tried in pairs]
        compared += [pair for key, pair in earlier.items() if key not in keys]
        table, chosen = max(compared, key=lambda pair: pair[1].nearness)
        if chosen.nearness == -math.inf:
            raise ValueError(
                f"density is {density}, and the final latents of all {len(compared)} tables that "
                "were tried aren't finite; try another dtype, or look at the model"
            )
        every = tuple(tried for _, tried in compared)
        return replace(calibration.delivered(table), chosen=chosen, tried=every)

    def _earlier(
        self, calibration: PipelineCalibration, density: float
    ) -> dict[str, tuple[RoutingTable, Tried]]:
        """Tables of at most this density that the state has whole, by what they do."""
        found = {}
        for key, one in self.state.tried.items():
            cost = priced(one.table, calibration.calibration, calibration.exact).cost
            if len(one.errors) == len(self.runs) and cost <= density:
                nearness = nearness_of(one.errors, self.state.latents)
                found[key] = (one.table, Tried(one.name, cost, nearness))
        return found

    def _nearness(
        self, calibration: PipelineCalibration, trial: Trial, done: Callable[..., None]
    ) -> float:
        kept = self.state.tried.setdefault(trial.key, TriedTable(trial.name, trial.table))
        tables = calibration.tables(trial.table)
        for _ in kept.errors:
            done(known=True)
        for prompt in range(len(kept.errors), len(self.runs)):
            with banded(self.subjects, tables):
                found = self.runs.latents(prompt)
            kept.errors.append(told_error(found, self.state.latents[prompt]))
            done()
        return nearness_of(kept.errors, self.state.latents)

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
        whole = self._weighed(steps, COARSE)
        by_tokens = self._weighed(steps, 0.0)
        return PipelineCalibration(whole, steps, self.origins, by_tokens, first.exact)

    def _weighed(self, steps: list[Step], coarse: float) -> Calibration:
        """Errors as parts of that of the final latents.

        Args:
            steps: of the calibration.
            coarse: how many times more what tiles miss on the whole counts.
        """
        by_part = self.state.energies
        first = by_part[steps[0].part]
        measured = torch.stack(
            [felt_energy(by_part[step.part].by_level[step.level], coarse) for step in steps]
        )
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
        assert first.candidates is not None
        assert first.grid is not None
        return Calibration(errors, _costs(first), first.candidates, first.grid)


def _costs(energies: Energies) -> torch.Tensor:
    """FLOPs of one head as every candidate, and as DENSE at the end."""
    assert energies.candidates is not None
    assert energies.grid is not None
    costs = energies.candidates.costs(
        energies.grid, num_heads=1, head_dim=1, num_text_tokens=energies.exact
    )
    return torch.tensor(costs, dtype=torch.float64)

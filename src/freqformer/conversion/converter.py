"""The state of a conversion, and what moves it on by one optimizer step: a function of this state
and of the step's number alone."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from freqformer._files import write_json
from freqformer._optional import needs
from freqformer.conversion.config import ConvertConfig
from freqformer.conversion.feeds import Feed, Question
from freqformer.conversion.pairs import Pair
from freqformer.conversion.resuming import check_same_run
from freqformer.conversion.schedule import Place, density_at, place_of
from freqformer.conversion.stages import add_gradient, gradient_norm
from freqformer.distributed.gradients import average_gradients
from freqformer.training.averaged import averaged_weights
from freqformer.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from freqformer.training.clock import RunClock
from freqformer.training.log import RunLog
from freqformer.training.objective import learning_rate_factor
from freqformer.training.optimizer import adamw
from freqformer.training.pending import PendingReports
from freqformer.training.provenance import (
    LOSS_STEPS,
    Session,
    describe_session,
    sessions_of_state,
    with_session,
    write_sessions,
)
from freqformer.training.report import StepNumbers, StepReport, TrainingError
from freqformer.training.seeding import seed_everything
from freqformer.training.state import capture_run, restore_run

with needs("train"):
    from accelerate.utils import broadcast_object_list
    from diffusers.training_utils import EMAModel

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

CONVERT_FILE = "convert.json"
"""The config of the run, all fields."""


class Converter:
    """A pair of models, its optimizer and average, and what it is asked.

    Args:
        config: of the run.
        accelerator: whose device computes, and whose main process writes.
        pair: the dense model and the converted one, on that device.
        feed: what they are asked.
    """

    def __init__(
        self, config: ConvertConfig, accelerator: Accelerator, pair: Pair, feed: Feed
    ) -> None:
        self.config, self.pair, self.feed = config, pair, feed
        self.accelerator = accelerator
        self.folder = Path(config.output)
        self.device = accelerator.device
        run = config.run.whole(config.stages.total)
        self.clock = RunClock(run, accelerator.device)
        logged: Any = config  # has what a log reads: output, run.tracker and its record
        self.log = RunLog(accelerator, logged)
        self.optimizer = adamw(pair.trained, config.optimizer)
        self.ema = EMAModel(
            pair.trained.parameters(), decay=config.optimizer.ema_decay, foreach=True
        )
        self.step = 0
        """Steps done."""
        self.saved_step = 0
        """That of the newest checkpoint."""
        self.sessions: list[Session] = []
        self.reports: deque[StepReport] = deque(maxlen=LOSS_STEPS)
        self.begun = (0, 0.0)
        self.pending = PendingReports(run.log_every)
        """Of steps whose numbers are not read yet."""

    def resume(self) -> None:
        """Go to the newest checkpoint of the output folder, if there is one, and start the clock
        and the log.

        Raises:
            CheckpointError: for a checkpoint of another run, or one that can't be read.
        """
        newest = newest_checkpoint(self._checkpoints)
        if newest is not None:
            if not self.config.checkpoint.resume:
                raise CheckpointError(
                    f"{self.folder} holds a run up to {newest.name} and resume is False: set it to "
                    "go on, or choose an empty output folder"
                )
            groups, state = load_checkpoint(newest)
            clips = self.feed.questions_per_step
            check_same_run(newest, state, self.config, self.feed.fingerprint(), clips)
            restore_run(self.pair.trained, self.ema, self.optimizer, groups)
            self.ema.optimization_step = state["ema_steps"]
            self.step = self.saved_step = state["step"]
            self.sessions = sessions_of_state(state) or []
            self.begun = (self.step, state["seconds"])
            logger.info("going on from %s", newest)
        self.clock.start(*self.begun)
        self.log.begin(self.step)

    @property
    def place(self) -> Place:
        """Where the next step is."""
        return place_of(self.config.stages, self.step)

    @property
    def density(self) -> float:
        """Of the next step."""
        return density_at(self.config.stages, self.config.windows.density, self.step)

    def advance(self, questions: Callable[[int], list[Question]]) -> StepReport:
        """Do one optimizer step.

        Args:
            questions: of this process in a step, as the feed gives them.

        Raises:
            TrainingError: where the loss or gradient of one of the last steps is not finite.
        """
        # All random numbers of a step follow from its number: a resumed run need not know the
        # earlier ones.
        seed_everything(self.config.run.seed, "step", self.step, self.accelerator.process_index)
        place, density = self.place, self.density
        settings = self.config.optimizer
        rate = settings.peak_rate * learning_rate_factor(
            place.step, place.progress, settings.warmup_steps
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.pair.set_density(density)
        self.optimizer.zero_grad(set_to_none=True)
        asked = questions(self.step)
        losses = [
            add_gradient(self.pair, question, place.stage, 1 / len(asked)) for question in asked
        ]
        loss: Any = self.accelerator.reduce(torch.stack(losses).mean(), "mean")
        average_gradients(self.pair.trained, self.accelerator.num_processes)
        norm = gradient_norm(self.pair.trained, settings.max_grad_norm)
        self.optimizer.step()
        self.ema.step(self.pair.trained.parameters())
        self.step += 1
        self.clock.advance(self.step)
        report = StepReport(
            step=self.step,
            numbers=StepNumbers(torch.stack([loss, torch.zeros_like(loss), norm.to(loss)])),
            learning_rate=rate,
            seconds=self.clock.seconds,
            progress=self.clock.progress,
        )
        self.pending.add(report)
        self.reports.append(report)
        if self.pending.are_due:
            self.settle()
        return report

    def settle(self) -> None:
        """Read what the steps so far computed, and log it.

        Raises:
            TrainingError: for the first step whose loss or gradient is not finite.
        """
        for report in self.pending.read():
            self._check_finite(report)
            self.log.add(report)
            stages = self.config.stages
            stage = place_of(stages, report.step - 1).stage
            density = density_at(stages, self.config.windows.density, report.step - 1)
            self.log.add_values({f"loss_{stage}": report.loss, "density": density}, report.step)

    def save(self) -> None:
        """Write a checkpoint, unless this step has one, with the run's config and the record of its
        sessions beside it."""
        # No checkpoint of weights that a step has spoiled.
        self.settle()
        if self.step != self.saved_step and self.accelerator.is_main_process:
            self._write()
        self.saved_step = self.step
        self.accelerator.wait_for_everyone()

    def _write(self) -> None:
        """Write a checkpoint of this step, and what lies beside it."""
        sessions = self._all_sessions()
        state = {
            "config": self.config.to_record(),
            "clips_per_step": self.feed.questions_per_step,
            "data": self.feed.fingerprint(),
            "ema_steps": self.ema.optimization_step,
            "sessions": [asdict(one) for one in sessions],
            "seconds": self.clock.seconds,
            "step": self.step,
        }
        groups = capture_run(self.pair.trained, self.ema, self.optimizer)
        keep = self.config.checkpoint.keep
        save_checkpoint(self._checkpoints, self.step, groups, state, keep=keep)
        write_sessions(self.folder, sessions)
        write_json(self.folder / CONVERT_FILE, self.config.to_record())

    def save_result(self) -> Path:
        """Write the converted model with averaged weights; returns its folder, on every process."""
        written = [self._write_result()] if self.accelerator.is_main_process else [""]
        return Path(broadcast_object_list(written)[0])

    def _write_result(self) -> str:
        self.pair.set_density(self.config.windows.density)
        history = {
            "config": self.config.to_record(),
            "steps": self.step,
            "sessions": [asdict(one) for one in self._all_sessions()],
        }
        with averaged_weights(self.pair.trained, self.ema):
            return str(self.pair.save(self.folder, history))

    def _all_sessions(self) -> list[Session]:
        if not self.reports:
            return self.sessions
        clips = self.feed.questions_per_step
        now = describe_session(self.reports, self.begun, clips, self.device)
        return with_session(self.sessions, now)

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _check_finite(self, report: StepReport) -> None:
        if report.is_finite:
            return
        kept = (
            f"{self._checkpoints} keeps step {self.saved_step}"
            if self.saved_step
            else "no checkpoint was written yet"
        )
        raise TrainingError(
            f"loss is {report.loss} and its gradient's norm {report.gradient_norm} at step"
            f" {report.step}{self.feed.describe(report.step - 1)}; finite numbers are allowed:"
            " lower the learning rate, lengthen the warm-up, or convert with run.precision=fp32;"
            f" {kept}"
        )

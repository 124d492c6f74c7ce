"""The log of a run: TensorBoard's, and that of another tracker where it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from freqformer.training.report import StepReport, TrainingError
from freqformer.training.tracking import Tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

    from freqformer.training.config import TrainConfig

LOGGED = ("loss", "routing_loss", "gradient_norm", "learning_rate", "seconds")
"""What of a step's report is logged."""


class RunLog:
    """Writes what steps did to `logs/` in a run's folder.

    Args:
        accelerator: of the run; its trackers write.
        config: of the run.
    """

    def __init__(self, accelerator: Accelerator, config: TrainConfig) -> None:
        self._accelerator, self._config = accelerator, config
        self._folder = Path(config.output)
        self._other: Tracker | None = None

    def begin(self, step: int) -> None:
        """Open the log to go on from a step; those after it will be logged again.

        Raises:
            TrainingError: where it can't be written.
        """
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._accelerator.init_trackers(
                "logs", init_kwargs={"tensorboard": {"purge_step": step + 1}}
            )
        if self._config.run.tracker is not None and self._accelerator.is_main_process:
            self._other = Tracker(self._config)

    def add(self, report: StepReport) -> None:
        """Log one step; as `begin`."""
        self.add_values({name: getattr(report, name) for name in LOGGED}, report.step)

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a step; as `begin`."""
        with self._writing():
            self._accelerator.log(dict(values), step=step)
        if self._other is not None:
            self._other.log(values, step)

    def add_picture(self, name: str, picture: Tensor, step: int) -> None:
        """Log a picture, uint8 (H, W, 3); as `begin`."""
        with self._writing():
            for tracker in self._accelerator.trackers:
                tracker.tracker.add_image(name, picture, step, dataformats="HWC")
        if self._other is not None:
            self._other.picture(name, picture, step)

    def close(self) -> None:
        """End the other tracker's log; accelerate ends TensorBoard's."""
        if self._other is not None:
            self._other.finish()
            self._other = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # A log that is broken can't be closed either, which would hide this error.
            self._accelerator.trackers = []
            raise TrainingError(
                f"output is {self._folder}, which can't be written: {error}; free space or choose "
                "another folder"
            ) from error

"""One validation: the averaged weights, measured and shown."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freqformer.training.averaged import averaged_weights
from freqformer.training.cache.clips import CachedClips
from freqformer.training.cache.reading import LatentCache
from freqformer.training.objective import ALL_LEVELS
from freqformer.training.processes import VALIDATION_FOLDER
from freqformer.training.validation.held_out import held_out_losses
from freqformer.training.validation.pipeline_videos import PipelineVideos
from freqformer.training.validation.videos import ValidationVideos, filmstrip, write_videos

if TYPE_CHECKING:
    from freqformer.training.trainer import Trainer


class Validator:
    """Measures held-out loss and makes videos of a run, where its config asks for either.

    All processes do the same, since all may hold a part of the weights; the main one writes.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._settings = trainer, trainer.config.validation
        self._done = trainer.step
        """The last step that was measured."""
        self._source = trainer.source if isinstance(trainer.source, CachedClips) else None
        self._videos: ValidationVideos | PipelineVideos | None = None
        if self._source is not None and self._settings.prompts:
            self._videos = self._maker(self._source.cache)

    def _maker(self, cache: LatentCache) -> ValidationVideos | PipelineVideos:
        """What makes videos of this run's model.

        Raises:
            ValueError: for one of two transformers that make a video together.
        """
        config, settings = self._trainer.config, self._settings
        if config.pipeline.folder is None:
            return ValidationVideos(settings, cache, self._trainer.shift)
        levels = self._trainer.model.levels
        if levels != ALL_LEVELS:
            raise ValueError(
                f"validation.prompts has {len(settings.prompts)} prompts, and the pipeline calls"
                f" its {config.pipeline.part} at noise levels from {levels[0]:g} to {levels[1]:g}"
                " alone; none are allowed, since a video takes both transformers: leave them out,"
                " and call freqformer generate --lora with those of both runs"
            )
        dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
        folder = Path(config.pipeline.folder)
        return PipelineVideos(settings, cache, self._trainer.shift, folder, dtype)

    def after_step(self, *, last: bool = False) -> None:
        """Measure and show the averaged weights, if it is time.

        Args:
            last: whether no step of the run follows: that is always measured.

        Raises:
            ValueError: where videos or the log can't be written, or a clip can't be read.
        """
        step = self._trainer.step
        due = last or step % self._settings.every_steps == 0
        if self._source is not None and self._settings.asks and due and step != self._done:
            self._measure(self._source, step)
            self._done = step

    def _measure(self, source: CachedClips, step: int) -> None:
        trainer = self._trainer
        trainer.settle()
        losses: dict[float, float] = {}
        videos: list[Tensor] = []
        training = trainer.model.training
        trainer.model.eval()
        try:
            with averaged_weights(trainer.weights, trainer.ema), trainer.accelerator.autocast():
                if source.held_out:
                    losses = held_out_losses(
                        trainer.model,
                        source.cache,
                        source.held_out,
                        self._settings.levels,
                        self._settings.seed,
                        trainer.accelerator.device,
                    )
                if self._videos is not None:
                    videos = self._videos.make(trainer.model, trainer.accelerator.device)
        finally:
            trainer.model.train(training)
        if trainer.accelerator.is_main_process:
            self._show(losses, videos, step, float(source.cache.index.recipe["fps"]))

    def _show(
        self, losses: dict[float, float], videos: list[Tensor], step: int, fps: float
    ) -> None:
        log, output = self._trainer.log, Path(self._trainer.config.output)
        write_videos(videos, output / VALIDATION_FOLDER / f"step-{step:08d}", fps)
        if losses:
            values = {f"held_out_loss/{level:g}": loss for level, loss in losses.items()}
            log.add_values({**values, "held_out_loss": fmean(losses.values())}, step)
        for place, video in enumerate(videos):
            log.add_picture(f"videos/{place}", filmstrip(video), step)

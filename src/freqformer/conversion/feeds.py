"""What a conversion asks both models: noisy clips of a source.

Shape legend: B batch, C channels, F frames, H height, W width of clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from freqformer.conversion.config import ConvertConfig
from freqformer.conversion.pairs import Ask
from freqformer.training.loader import NAMED, ClipLoader, ClipSource, OnDeviceLoader
from freqformer.training.objective import (
    ALL_LEVELS,
    TIMESTEP_SCALE,
    resolution_shift,
    sample_timesteps,
    within,
)
from freqformer.training.samples import TrainingBatch
from freqformer.training.seeding import derive_generator
from freqformer.training.sharding import StepShards
from freqformer.training.sources import loader_of


@dataclass(frozen=True)
class Question:
    """What one forward pass asks."""

    ask: Ask
    target: Tensor | None
    """The flow's velocity noise - clip; None where no clip is known."""


class Feed(Protocol):
    """An endless sequence of questions; what a step asks depends on its number alone."""

    questions_per_step: int
    """Samples of all questions of a step, those of all processes."""

    def fingerprint(self) -> str:
        """A text that differs where the sequence differs."""
        ...

    def describe(self, step: int) -> str:
        """What a step is about, for errors."""
        ...

    def open(self, step: int) -> Any:
        """A context that gives a function from a step's number to this process's questions, called
        for this step and those after it, in order."""
        ...


class ClipFeed:
    """Questions on the clips of a source.

    Args:
        source: of the clips.
        config: of the run.
        device: that computes.
        num_tokens: tokens of clips of this shape.
        levels: noise levels that are asked about, from 0 to 1.
        shards: this process's clips of a step; None where it asks about them all.
    """

    def __init__(
        self,
        source: ClipSource,
        config: ConvertConfig,
        device: torch.device,
        num_tokens: Callable[[Any], int],
        levels: tuple[float, float] = ALL_LEVELS,
        shards: StepShards | None = None,
    ) -> None:
        self._levels = levels
        self._source, self._config, self._device = source, config, device
        self._num_tokens = num_tokens
        self._shards = config.shards() if shards is None else shards
        self.questions_per_step = self._shards.clips_per_step

    def fingerprint(self) -> str:
        """See `Feed`."""
        return self._source.fingerprint()

    def describe(self, step: int) -> str:
        """See `Feed`."""
        own = self._shards.batch_size * self._shards.accumulation
        indices = islice(self._shards.indices(step), own)
        names = [name for index in indices if (name := self._source.describe(index)) is not None]
        return f", of the clips {', '.join(names[:NAMED])}" if names else ""

    @contextmanager
    def open(self, step: int) -> Iterator[Callable[[int], list[Question]]]:
        """See `Feed`."""
        run = self._config.run
        with self._loader(step) as loader:

            def questions(step: int) -> list[Question]:
                batches = [loader.take(run.batch_size) for _ in range(run.accumulation)]
                return [
                    self._question(batch.to(self._device), step, place)
                    for place, batch in enumerate(batches)
                ]

            yield questions

    def _loader(self, step: int) -> ClipLoader | OnDeviceLoader:
        run = self._config.run
        return loader_of(
            self._source,
            self._shards.indices(step),
            self._device,
            seed=run.seed,
            batch_size=run.batch_size,
            workers=self._config.data.workers,
        )

    def _question(self, batch: TrainingBatch, step: int, place: int) -> Question:
        timestep = self._timesteps(batch, step)[place].to(self._device)
        t = timestep.view(-1, *[1] * (batch.clip.ndim - 1))
        noisy = (1 - t) * batch.clip + t * batch.noise
        text = {
            "encoder_hidden_states": batch.prompt_embeds,
            "encoder_attention_mask": batch.prompt_attention_mask,
        }
        given = {name: value for name, value in text.items() if value is not None}
        given |= batch.conditions

        def ask(model: Any) -> Tensor:
            return model(noisy, timestep * TIMESTEP_SCALE, return_dict=False, **given)[0]

        return Question(ask, batch.noise - batch.clip)

    def _timesteps(self, batch: TrainingBatch, step: int) -> list[Tensor]:
        """(B,) of every forward pass of a step, drawn together."""
        settings = self._config.objective
        shift = settings.shift
        if shift is None:
            shift = resolution_shift(self._num_tokens(batch.clip.shape))
        drawn = sample_timesteps(
            self.questions_per_step,
            shift,
            derive_generator(self._config.run.seed, "timestep", step),
            mean=settings.logit_mean,
            std=settings.logit_std,
            stratified=settings.stratified,
        )
        return self._shards.slices(within(drawn, self._levels))

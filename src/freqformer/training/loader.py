"""Clips and their noise by number, made ahead in the background and handed out in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from freqformer._renamed import moved_names, warn_renamed
from freqformer.grid import Extents
from freqformer.training.samples import BadFile, TrainingBatch, TrainingSample
from freqformer.training.seeding import derive_generator, derive_seed

NAMED = 10
"""Files that a message lists; it counts the others."""


def listed(reasons: Sequence[str]) -> str:
    """The first few reasons, a line each, and how many more there are."""
    lines = [f"  {reason}" for reason in reasons[:NAMED]]
    if len(reasons) > NAMED:
        lines.append(f"  and {len(reasons) - NAMED} more")
    return "\n".join(lines)


class ClipSource(ABC):
    """An endless sequence of clips. Clip `index` depends on the index alone, so training can go on
    from any place."""

    @property
    def channels(self) -> int:
        """Channels of every clip, 3 of pixels. Looked up in clip 0, unless a source knows it
        without loading one."""
        return len(self.load(0).clip)

    @property
    def text_channels(self) -> int | None:
        """Channels of every clip's text embeddings; None where clips have no text."""
        return None

    @property
    def sizes(self) -> Sequence[Extents]:
        """(F, H, W) of clips where they are not those of the config, the usual one first. Those of
        one forward pass are alike."""
        return ()

    def describe(self, index: int) -> str | None:
        """What clip `index` is called, for errors; None where it has no name."""
        return None

    @abstractmethod
    def load(self, index: int) -> TrainingSample:
        """Clip `index`. Called from several threads at once, in any order."""

    @abstractmethod
    def report(self, sample: TrainingSample) -> None:
        """Take note of a sample's failures. Called in the order of the clips."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that differs where the sequence differs."""


class ProceduralClips(ClipSource):
    """Clips that are computed rather than read, many at once and on any device."""

    @abstractmethod
    def draw(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """The clips of these numbers, (clips, C, F, H, W) float32, pixels in [-1, 1]; on
        equal devices always the same."""

    def load(self, index: int) -> TrainingSample:
        """Clip `index`, drawn on the CPU."""
        return TrainingSample(self.draw([index], torch.device("cpu"))[0])

    def report(self, sample: TrainingSample) -> None:
        """Nothing is read, so there is no failure."""


class OnDeviceLoader:
    """Draws clips and their noise on the device that trains, when they are asked for: a GPU draws
    faster than threads do.

    Args:
        source: of the clips.
        indices: which, in order, without end.
        seed: of the noise, which depends on it, the clip's index and the kind of device alone.
        device: of clips and noise.
    """

    def __init__(
        self, source: ProceduralClips, indices: Iterator[int], *, seed: int, device: torch.device
    ) -> None:
        self._source, self._indices, self._seed, self._device = source, indices, seed, device
        self._generator = torch.Generator(device)

    def take(self, count: int) -> TrainingBatch:
        """The next `count` clips with their noise, on the device."""
        indices = list(islice(self._indices, count))
        clips = self._source.draw(indices, self._device)
        noise = torch.empty_like(clips)
        for place, index in enumerate(indices):
            noise[place].normal_(
                generator=self._generator.manual_seed(derive_seed(self._seed, "noise", index))
            )
        return TrainingBatch(clips, noise)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is drawn ahead, so nothing is left."""


class ClipLoader:
    """Loads clips and draws their noise in background threads, and gives both out in order whatever
    the timing.

    Threads do, since FFmpeg and torch release Python's lock; and a killed process leaves none
    behind. Close it when done.

    Args:
        source: of the clips.
        indices: which, in order, without end.
        seed: of the noise, which depends on it and on the clip's index alone.
        workers: threads.
        ahead: clips that are loaded before they are asked for.
    """

    def __init__(
        self,
        source: ClipSource,
        indices: Iterator[int],
        *,
        seed: int,
        workers: int = 2,
        ahead: int = 8,
    ) -> None:
        self._source, self._indices, self._seed, self._ahead = source, indices, seed, ahead
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="clips")
        self._pending: deque[Future[tuple[TrainingSample, Tensor]]] = deque()

    def take(self, count: int) -> TrainingBatch:
        """The next `count` samples with their noise, on the CPU.

        Raises:
            VideoError: where no file of the source can be read any more.
            ValueError: for samples that don't make a batch, as `TrainingBatch.of`.
        """
        pairs = [self._next() for _ in range(count)]
        return TrainingBatch.of([sample for sample, _ in pairs], [noise for _, noise in pairs])

    def _next(self) -> tuple[TrainingSample, Tensor]:
        while len(self._pending) <= self._ahead:
            self._pending.append(self._pool.submit(self._load, next(self._indices)))
        sample, noise = self._pending.popleft().result()
        self._source.report(sample)
        return sample, noise

    def _load(self, index: int) -> tuple[TrainingSample, Tensor]:
        sample = self._source.load(index)
        generator = derive_generator(self._seed, "noise", index)
        return sample, torch.randn(sample.clip.shape, generator=generator)

    def close(self) -> None:
        """Drop what was loaded ahead and end the threads."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _old_clip(pixels: Tensor, failures: tuple[BadFile, ...] = ()) -> TrainingSample:
    return TrainingSample(pixels, failures=failures)


_moved = moved_names(
    __name__,
    {
        "DrawnClips": f"{__name__}.ProceduralClips",
        "DrawingLoader": f"{__name__}.OnDeviceLoader",
    },
)


def __getattr__(name: str) -> Any:
    if name == "Clip":
        warn_renamed(f"{__name__}.Clip", "freqformer.training.samples.TrainingSample")
        return _old_clip
    return _moved(name)

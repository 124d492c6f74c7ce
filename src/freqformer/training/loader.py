"""Clips and their noise by number, made ahead in the background and handed out in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from freqformer.training.seeding import derive_generator, derive_seed

NAMED = 10
"""Files that a message lists; it counts the others."""


@dataclass(frozen=True)
class BadFile:
    """A file that can't be read, and why."""

    path: Path
    reason: str


def listed(reasons: Sequence[str]) -> str:
    """The first few reasons, a line each, and how many more there are."""
    lines = [f"  {reason}" for reason in reasons[:NAMED]]
    if len(reasons) > NAMED:
        lines.append(f"  and {len(reasons) - NAMED} more")
    return "\n".join(lines)


@dataclass(frozen=True)
class Clip:
    """One clip, and the files that it stands in for."""

    pixels: Tensor
    """(3, F, H, W) float32 in [-1, 1]."""
    failures: tuple[BadFile, ...] = ()


class ClipSource(ABC):
    """An endless sequence of clips. Clip `index` depends on the index alone, so training can go on
    from any place."""

    @abstractmethod
    def load(self, index: int) -> Clip:
        """Clip `index`. Called from several threads at once, in any order."""

    @abstractmethod
    def report(self, clip: Clip) -> None:
        """Take note of a clip's failures. Called in the order of the clips."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that differs where the sequence differs."""


class DrawnClips(ClipSource):
    """Clips that are computed rather than read, many at once and on any device."""

    @abstractmethod
    def draw(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """The clips of these numbers, (clips, 3, F, H, W) float32 in [-1, 1]; on equal devices
        always the same."""

    def load(self, index: int) -> Clip:
        """Clip `index`, drawn on the CPU."""
        return Clip(self.draw([index], torch.device("cpu"))[0])

    def report(self, clip: Clip) -> None:
        """Nothing is read, so there is no failure."""


class DrawingLoader:
    """Draws clips and their noise on the device that trains, when they are asked for: a GPU draws
    faster than threads do.

    Args:
        source: of the clips.
        indices: which, in order, without end.
        seed: of the noise, which depends on it, the clip's index and the kind of device alone.
        device: of clips and noise.
    """

    def __init__(
        self, source: DrawnClips, indices: Iterator[int], *, seed: int, device: torch.device
    ) -> None:
        self._source, self._indices, self._seed, self._device = source, indices, seed, device
        self._generator = torch.Generator(device)

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """The next `count` clips and standard normal noise, each (count, 3, F, H, W) float32 on the
        device."""
        indices = list(islice(self._indices, count))
        clips = self._source.draw(indices, self._device)
        noise = torch.empty_like(clips)
        for place, index in enumerate(indices):
            noise[place].normal_(
                generator=self._generator.manual_seed(derive_seed(self._seed, "noise", index))
            )
        return clips, noise

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
        self._pending: deque[Future[tuple[Clip, Tensor]]] = deque()

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """The next `count` clips and standard normal noise, each (count, 3, F, H, W) float32 on the
        CPU.

        Raises:
            VideoError: where no file of the source can be read any more.
        """
        pairs = [self._next() for _ in range(count)]
        return torch.stack([pixels for pixels, _ in pairs]), torch.stack(
            [noise for _, noise in pairs]
        )

    def _next(self) -> tuple[Tensor, Tensor]:
        while len(self._pending) <= self._ahead:
            self._pending.append(self._pool.submit(self._load, next(self._indices)))
        clip, noise = self._pending.popleft().result()
        self._source.report(clip)
        return clip.pixels, noise

    def _load(self, index: int) -> tuple[Clip, Tensor]:
        clip = self._source.load(index)
        return clip, torch.randn(
            clip.pixels.shape, generator=derive_generator(self._seed, "noise", index)
        )

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

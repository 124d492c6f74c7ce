"""Buckets: the sizes, aspects and lengths that clips are brought to, by the rules of a VAE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from freqformer.grid import Extents
from freqformer.models.chunked import Chunks, allowed_frames, latent_frames
from freqformer.training.cache.errors import CacheError

ASPECTS = (
    (1, 2),
    (9, 16),
    (2, 3),
    (3, 4),
    (1, 1),
    (4, 3),
    (3, 2),
    (16, 9),
    (2, 1),
)
"""Width to height of the buckets of one area, in addition to the size's own, upright and lying."""
DISTINCT = 0.1
"""Least distance of their logarithms from those two: the size itself stands for what is nearer."""
ENLARGED = 1.1
"""Most that a side is enlarged by, where a smaller size would do without."""


@dataclass(frozen=True)
class Bucket:
    """What a clip is brought to."""

    frames: int
    height: int
    """Pixels."""
    width: int
    """Pixels."""

    @property
    def size(self) -> Extents:
        """(frames, height, width)."""
        return (self.frames, self.height, self.width)

    def __str__(self) -> str:
        return f"{self.frames} x {self.height} x {self.width}"


@dataclass(frozen=True)
class Buckets:
    """All that a cache may have.

    Args:
        areas: (height, width) of every aspect, a row for each size that was asked for, smallest
            area first.
        frames: lengths of clips, shortest first.
        fps: frames per second.
    """

    areas: tuple[tuple[tuple[int, int], ...], ...]
    frames: tuple[int, ...]
    fps: float

    @classmethod
    def of(
        cls,
        sizes: Sequence[tuple[int, int]],
        frames: Sequence[int],
        fps: float,
        *,
        compression: tuple[int, int],
        multiple: int | None,
        chunks: Chunks | None = None,
    ) -> Buckets:
        """The buckets of these sizes and lengths.

        Args:
            sizes: (height, width) in pixels.
            frames: of clips.
            fps: frames per second.
            compression: frames and pixels of a side that a VAE makes one latent of.
            multiple: pixels that sides are multiples of; None is twice the VAE's.
            chunks: of a VAE that codes videos in chunks.

        Raises:
            CacheError: for lengths and multiples that the VAE can't code, and sizes that are no
                multiples.
        """
        time, space = compression
        step = 2 * space if multiple is None else multiple
        if step % space:
            raise CacheError(
                f"multiple is {step}; multiples of {space} are allowed for this VAE, which makes"
                f" one latent of {space} x {space} pixels"
            )
        for count in frames:
            if latent_frames(count, time, chunks) is None:
                step_of_frames = time if chunks is None else chunks.frames
                last = 1 if chunks is None else chunks.latents
                near = max(count - last, 0) // step_of_frames * step_of_frames + last
                raise CacheError(
                    f"frames is {count}; {allowed_frames(time, chunks)} is allowed for this VAE,"
                    f" like {near} or {near + step_of_frames}"
                )
        for height, width in sizes:
            if height % step or width % step:
                raise CacheError(
                    f"sizes has {height} x {width}; multiples of {step} are allowed: choose such"
                    " a size, or another multiple"
                )
        rows = [_row(height, width, step) for height, width in sizes]
        return cls(
            tuple(sorted(set(rows), key=lambda row: max(h * w for h, w in row))),
            tuple(sorted(set(frames))),
            fps,
        )

    def of_picture(self, height: int, width: int) -> Bucket:
        """The bucket of a picture of this size, as a clip of one frame."""
        return self._fitted(1, height, width)

    def of_video(self, height: int, width: int, duration: float) -> Bucket | None:
        """The bucket of a video of this size, with the most frames that fit; None where none do.

        Args:
            height, width: pixels as shown.
            duration: seconds.
        """
        fitting = [count for count in self.frames if (count - 1) / self.fps < duration]
        return self._fitted(fitting[-1], height, width) if fitting else None

    def starts(self, bucket: Bucket, duration: float) -> list[float]:
        """Seconds at which the clips of a video begin: one after the other, at least one."""
        length = bucket.frames / self.fps
        count = max(int(duration / length + 1e-9), 1)
        return [place * length for place in range(count)]

    @property
    def shortest(self) -> float:
        """Seconds that a video must last."""
        return (self.frames[0] - 1) / self.fps

    def _fitted(self, frames: int, height: int, width: int) -> Bucket:
        """The largest area that hardly enlarges the picture, and the nearest aspect in it."""
        fitting = [
            size
            for row in self.areas
            for size in [_nearest(row, height, width)]
            if size[0] <= ENLARGED * height and size[1] <= ENLARGED * width
        ]
        chosen = fitting[-1] if fitting else _nearest(self.areas[0], height, width)
        return Bucket(frames, *chosen)


def _row(height: int, width: int, step: int) -> tuple[tuple[int, int], ...]:
    """The sizes of about this area, one for each aspect, all multiples of the step."""
    area = height * width
    own = math.log(width / height)
    found = {(height, width), (width, height)}
    for wide, tall in ASPECTS:
        if abs(abs(math.log(wide / tall)) - abs(own)) < DISTINCT:
            continue
        rows = max(round(math.sqrt(area * tall / wide) / step), 1) * step
        columns = max(round(math.sqrt(area * wide / tall) / step), 1) * step
        found.add((rows, columns))
    return tuple(sorted(found))


def _nearest(row: Sequence[tuple[int, int]], height: int, width: int) -> tuple[int, int]:
    """The size of the nearest aspect; of two as near, the larger."""
    aspect = math.log(width / height)
    return min(row, key=lambda size: (abs(math.log(size[1] / size[0]) - aspect), -size[0]))

"""Where a run's clips come from, as a frozen record."""

from __future__ import annotations

from dataclasses import dataclass

from freqformer._validate import check_number, check_whole, shown
from freqformer.training.samples import PIXEL_CHANNELS

_MOST_FRAMES = 100_000
_MOST_SIDE = 65_536
_MOST_VALUES = 2**31 - 1
_MOST_WORKERS = 1024
_MOST_MIB = 2**24


@dataclass(frozen=True)
class DataConfig:
    """Clips to train on.

    Args:
        path: a video file or a folder of them, searched in depth; None makes synthetic clips.
        photographs: a folder of JPEG or PNG files; synthetic clips are then camera moves over them
            with balls in front.
        cache: a folder that `freqformer cache` filled, whose latents and texts are trained on. Size
            and rate of clips are then the cache's.
        caption_dropout: share of a cache's clips that are shown with the empty caption, which
            guidance needs; None is 0.1.
        first_frame: share of a cache's clips whose first latent frame the model is given without
            noise, so that it learns to go on from a picture; None is 0.
        num_frames: frames of a clip.
        height, width: pixels of a clip; videos are resized to cover it and cropped in the middle.
        fps: frames per second of a clip; videos of another rate are sampled at it.
        workers: threads that decode in the background.
        cache_mib: memory for decoded frames at the clip's size, in MiB. Where all videos fit they
            are decoded once; where they don't, every clip is decoded when its turn comes.
    """

    path: str | None = None
    photographs: str | None = None
    cache: str | None = None
    caption_dropout: float | None = None
    first_frame: float | None = None
    num_frames: int = 16
    height: int = 48
    width: int = 80
    fps: float = 8.0
    workers: int = 2
    cache_mib: int = 256

    def __post_init__(self) -> None:
        if self.path is not None and not isinstance(self.path, str):
            raise ValueError(
                f"path is {shown(self.path)}; a path as text, or None for synthetic clips, is "
                "allowed"
            )
        if self.photographs is not None and (
            not isinstance(self.photographs, str) or self.path is not None
        ):
            raise ValueError(
                f"photographs is {shown(self.photographs)} and path {shown(self.path)}; a folder "
                "as"
                " text is allowed, and path None: clips come from videos or are synthetic"
            )
        self._check_cache()
        check_whole("num_frames", self.num_frames, 1, most=_MOST_FRAMES)
        for name in ("height", "width"):
            check_whole(name, getattr(self, name), 1, most=_MOST_SIDE)
        if PIXEL_CHANNELS * self.num_frames * self.height * self.width > _MOST_VALUES:
            raise ValueError(
                f"num_frames, height and width are {self.num_frames} x {self.height} x "
                f"{self.width};"
                f" {_MOST_VALUES // PIXEL_CHANNELS:,} pixels in a clip at most are allowed: make it"
                " smaller"
            )
        check_whole("workers", self.workers, 1, most=_MOST_WORKERS)
        check_whole("cache_mib", self.cache_mib, 0, most=_MOST_MIB)
        check_number("fps", self.fps, 1e-3, 1e3)

    def _check_cache(self) -> None:
        if self.cache is not None and not (
            isinstance(self.cache, str) and self.path is self.photographs is None
        ):
            raise ValueError(
                f"cache is {shown(self.cache)}, path {shown(self.path)} and photographs"
                f" {shown(self.photographs)}; one folder, as text, is allowed: clips come from a"
                " cache, from videos or from photographs"
            )
        for name in ("caption_dropout", "first_frame"):
            share = getattr(self, name)
            if share is not None:
                check_number(name, share, 0, 1)
            if share is not None and self.cache is None:
                raise ValueError(
                    f"{name} is {share!r} and cache None; it is of a cache's clips: leave it out"
                )

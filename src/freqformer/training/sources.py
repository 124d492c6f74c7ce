"""Where a run's clips come from: what the config names, or what the caller gives.

Shape legend: C channels, F frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from freqformer.training.config import DataConfig, TrainConfig
from freqformer.training.loader import ClipLoader, ClipSource, OnDeviceLoader, ProceduralClips
from freqformer.training.samples import TrainingSample
from freqformer.training.seeding import derive_generator, derive_seed

LARGEST_VALUE = 32.0
"""Beyond any latent that is scaled for diffusion, and below the 255 of pixels that are not."""


def run_source(config: TrainConfig, clips: Any, model: Mapping[str, Any]) -> ClipSource:
    """The clips of a run: those that are given, or those of its config, as the model takes them.

    Args:
        config: of the run.
        clips: that the caller of `train` gives, or None.
        model: the model's own settings.

    Raises:
        ValueError: as `clip_source` and `given_source`; for clips or texts of other channels than
            the model's.
    """
    channels, data, run = model["in_channels"], config.data, config.run
    if clips is None:
        source = clip_source(data, run.seed, run.batch_size, config.validation.held_out)
    else:
        source = given_source(clips, data, run.seed, channels)
    if source.channels != channels:
        raise ValueError(
            f"model has in_channels={channels} and the clips {source.channels} channels; the same "
            "is allowed: give train(clips=...) latents of your own, or set in_channels"
        )
    reads = model["cross_attention_dim"]
    if data.cache is not None and source.text_channels != reads:
        raise ValueError(
            f"model has cross_attention_dim={reads} and the cache texts of {source.text_channels} "
            "channels; the same is allowed: make another cache, or set cross_attention_dim"
        )
    return source


def clip_source(
    config: DataConfig, seed: int, batch_size: int = 1, held_out: int = 0
) -> ClipSource:
    """The clips that a config names: synthetic ones where it names no path.

    Args:
        config: where they come from.
        seed: of their order.
        batch_size: clips of a forward pass, which come from one bucket of a cache.
        held_out: clips of a cache that are not shown.

    Raises:
        ValueError: as `ClipFolder`, `PhotographClips` and `CachedClips`.
    """
    if config.cache is not None:
        from freqformer.training.cache.clips import CAPTION_DROPOUT, CachedClips

        dropout = config.caption_dropout
        return CachedClips(
            Path(config.cache),
            seed,
            batch_size=batch_size,
            caption_dropout=CAPTION_DROPOUT if dropout is None else dropout,
            held_out=held_out,
            first_frame=config.first_frame or 0.0,
        )
    size = {"num_frames": config.num_frames, "height": config.height, "width": config.width}
    if config.photographs is not None:
        from freqformer.training.photographs import PhotographClips

        return PhotographClips(config.photographs, seed, **size)
    if config.path is None:
        from freqformer.training.synthetic import SyntheticClips

        return SyntheticClips(seed, **size)
    from freqformer.training.data import ClipFolder

    return ClipFolder(config, seed)


def given_source(clips: Any, config: DataConfig, seed: int, channels: int) -> ClipSource:
    """The clips that the caller of `train` gives.

    Args:
        clips: a `ClipSource`; or a dataset with `len` and indexing, or an iterable, of float
            tensors (C, F, H, W), or of tuples of one. Pixels are in [-1, 1].
        config: `num_frames`, `height` and `width` say F, H and W; `path` and `photographs` are
            None.
        seed: of the order of a dataset.
        channels: C.

    Raises:
        ValueError: for clips of another kind, none at all, or a config that names others.
    """
    named = {"path": config.path, "photographs": config.photographs, "cache": config.cache}
    if any(value is not None for value in named.values()):
        told = ", ".join(f"{name}={value!r}" for name, value in named.items() if value is not None)
        raise ValueError(
            f"clips are given, and data has {told}; one source is allowed: leave them out"
        )
    if isinstance(clips, ClipSource):
        return clips
    shape = (channels, config.num_frames, config.height, config.width)
    if not isinstance(clips, str | bytes | Mapping):
        if hasattr(clips, "__getitem__") and hasattr(clips, "__len__"):
            return DatasetClips(clips, seed, shape)
        if isinstance(clips, Iterable):
            return IterableClips(clips, shape)
    raise ValueError(
        f"clips is a {type(clips).__name__}; a dataset with len and indexing, an iterable, or a"
        " ClipSource is allowed, of float tensors (channels, frames, height, width)"
    )


class DatasetClips(ClipSource):
    """Clips of a dataset; every epoch shows each once, in random order.

    Args:
        dataset: with `len` and indexing by number; one clip is asked for at a time. For a resumed
            run to repeat the other, its clips must not change.
        seed: of the order.
        shape: (C, F, H, W).
    """

    def __init__(self, dataset: Any, seed: int, shape: tuple[int, ...]) -> None:
        self._dataset, self._seed, self._shape = dataset, seed, shape
        self._lock = Lock()
        self._size = len(dataset)
        if self._size < 1:
            raise ValueError("clips is empty; one clip at least is allowed")
        self._order = lru_cache(maxsize=2)(self._permutation)

    @property
    def channels(self) -> int:
        """C of the shape."""
        return self._shape[0]

    def load(self, index: int) -> TrainingSample:
        """Clip `index` of the endless sequence."""
        epoch, place = divmod(index, self._size)
        number = int(self._order(epoch)[place])
        # Few datasets are made for threads, and the threads that load here do not know of it.
        with self._lock:
            item = self._dataset[number]
        return TrainingSample(_checked(item, number, self._shape))

    def report(self, sample: TrainingSample) -> None:
        """A dataset's errors are raised where they happen."""

    def fingerprint(self) -> str:
        """Differs with the number and the shape of the clips, and with the seed."""
        return f"{derive_seed(self._seed, self._size, *self._shape):x}"

    def _permutation(self, epoch: int) -> Tensor:
        generator = derive_generator(self._seed, "epoch", epoch)
        return torch.randperm(self._size, generator=generator)


class IterableClips(ClipSource):
    """Clips in the order in which an iterable gives them, which begins again at its end.

    A resumed run passes over the clips that were seen. Clips are asked for in order, by one thread.

    Args:
        clips: the iterable.
        shape: (C, F, H, W).
    """

    def __init__(self, clips: Iterable[Any], shape: tuple[int, ...]) -> None:
        self._clips, self._shape = clips, shape
        self._iterator: Iterator[Any] = iter(clips)
        self._given = 0
        """Clips that were taken so far, those of earlier passes included."""

    @property
    def channels(self) -> int:
        """C of the shape."""
        return self._shape[0]

    def load(self, index: int) -> TrainingSample:
        """Clip `index`, which is not before any that was loaded."""
        if index < self._given:
            raise ValueError(f"clip {index} was passed; an iterable gives {self._given} next")
        while self._given < index:
            self._next()
        return TrainingSample(_checked(self._next(), index, self._shape))

    def report(self, sample: TrainingSample) -> None:
        """An iterable's errors are raised where they happen."""

    def fingerprint(self) -> str:
        """Nothing is known of an iterable but the shape of its clips."""
        return f"{derive_seed('iterable', *self._shape):x}"

    def _next(self) -> Any:
        for again in (False, True):
            if again:
                self._iterator = iter(self._clips)
            for item in self._iterator:
                self._given += 1
                return item
        raise ValueError(
            f"clips ended after {self._given}, and training asks for more; give more, or what can "
            "be"
            " iterated again, like a list or a dataset"
        )


def _checked(item: Any, number: int, shape: tuple[int, ...]) -> Tensor:
    """The clip of an item, float32 (C, F, H, W)."""
    clip = item[0] if isinstance(item, tuple | list) and len(item) == 1 else item
    if not isinstance(clip, Tensor) or not clip.is_floating_point() or tuple(clip.shape) != shape:
        tensor = isinstance(clip, Tensor)
        what = f"{clip.dtype} {tuple(clip.shape)}" if tensor else type(clip).__name__
        raise ValueError(
            f"clips has {what} as number {number}; a float tensor {shape} is allowed: the model's"
            " channels, and data.num_frames, height and width"
        )
    largest = float(clip.detach().abs().amax())
    # The comparison is False for NaN, so NaN is refused too.
    if not largest <= LARGEST_VALUE:
        raise ValueError(
            f"clips has values up to {largest:g} in number {number}; pixels in [-1, 1], or latents"
            f" scaled to about 1, are allowed, none beyond {LARGEST_VALUE:g}"
        )
    return clip.detach().float().cpu()


def loader_of(
    source: ClipSource,
    indices: Iterator[int],
    device: torch.device,
    *,
    seed: int,
    batch_size: int,
    workers: int,
) -> ClipLoader | OnDeviceLoader:
    """What loads clips. A GPU draws what can be drawn there; threads load the rest.

    Args:
        source: of the clips.
        indices: which, in order, without end.
        device: that trains.
        seed: of the noise.
        batch_size: clips that are taken at once.
        workers: threads.
    """
    if isinstance(source, ProceduralClips) and device.type != "cpu":
        return OnDeviceLoader(source, indices, seed=seed, device=device)
    # An iterable gives its clips in order, so one thread asks for them.
    threads = 1 if isinstance(source, IterableClips) else workers
    ahead = max(2 * batch_size, threads)
    return ClipLoader(source, indices, seed=seed, workers=threads, ahead=ahead)

"""Writing the shards: reading clips ahead, coding them, and keeping what is left out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer.media import VideoError, VideoInfo, probe_video, read_clip, read_sound, to_unit
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.first_frames.source import FirstFrames
from freqformer.training.cache.pictures import read_picture
from freqformer.training.cache.planning import PlannedClip
from freqformer.training.cache.settings import CacheConfig, Latents
from freqformer.training.cache.shards import LatentShard, TextShard, checksum, write_shard
from freqformer.training.cache.sounds.source import Sounds, SoundSource
from freqformer.training.cache.texts import CaptionEncoder
from freqformer.training.cache.vae import LatentsError, VideoVae, stored
from freqformer.training.seeding import derive_generator

logger = logging.getLogger(__name__)

STORED_TEXT = torch.bfloat16
"""Of embeddings, whose largest values are beyond float16 in some encoders."""
AHEAD = 2
"""Clips that are decoded while one is coded."""


@dataclass(frozen=True)
class DecodedClip:
    """What is seen and heard of a clip, on the CPU."""

    pixels: Tensor
    """uint8 (F, H, W, 3)."""
    sound: Tensor | None = None
    """(2, S) in [-1, 1]; None where the pipeline makes none."""


@dataclass(frozen=True)
class ClipCoders:
    """What codes clips: the VAE, of image-to-video pipelines their first frames, and of pipelines
    that make sound their sound."""

    vae: VideoVae
    first_frames: FirstFrames | None = None
    sounds: Sounds | None = None

    def code(
        self, clip: DecodedClip, kept: Latents, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """As `VideoVae.code`, with what else a shard keeps of the clip."""
        # Bytes travel to the device, and are made numbers there.
        seen = to_unit(clip.pixels.to(self.vae.device))
        made = self.vae.code(seen, kept, generator)
        told: dict[str, Tensor] = {}
        if self.first_frames is not None:
            told |= self.first_frames.code(seen, self.vae.vae)
        if self.sounds is not None and clip.sound is not None:
            told |= self.sounds.code(clip.sound)
        return made | {name: stored(name, one) for name, one in told.items()}


@dataclass(frozen=True)
class Filler:
    """What all shards of a cache are made with.

    Args:
        config: of the cache.
        folder: of the videos.
        recipe: the digest of all that a shard's content depends on.
        sounds: of a pipeline that makes sound.
    """

    config: CacheConfig
    folder: Path
    recipe: str
    sounds: SoundSource | None = None

    def fill_latents(
        self, path: Path, shard: LatentShard, coders: ClipCoders, on_clip: Callable[[], None]
    ) -> None:
        """Write a shard of latents. What can't be read is named in the log and in the shard.

        Args:
            path: of the shard.
            shard: what it holds.
            coders: that code.
            on_clip: called after each.

        Raises:
            CacheError: where the shard can't be written.
        """
        tensors: dict[str, Tensor] = {}
        kept = []
        skipped = []
        for place, (clip, read) in enumerate(self._ahead(shard.clips)):
            try:
                decoded = read.result()
                generator = derive_generator(
                    self.config.seed, "latents", clip.file, str(clip.start)
                )
                made = coders.code(decoded, self.config.latents, generator)
            except (VideoError, LatentsError) as error:
                reason = str(error) if isinstance(error, VideoError) else f"{clip}: {error}"
                logger.warning("skipped: %s", reason)
                skipped.append({"place": place, "reason": reason})
            else:
                tensors |= {f"{place:06d}.{name}": one for name, one in made.items()}
                kept.append({"place": place, "crc32": checksum(list(made.values()))})
            on_clip()
        record = {"key": shard.key(self.recipe), "clips": kept, "skipped": skipped}
        write_shard(path, tensors, record)

    def fill_texts(
        self, path: Path, shard: TextShard, model: CaptionEncoder, on_text: Callable[[], None]
    ) -> None:
        """Write a shard of texts.

        Args:
            path: of the shard.
            shard: what it holds.
            model: that embeds.
            on_text: called after each.

        Raises:
            CacheError: where it can't be written, or embeddings are not finite.
        """
        tensors: dict[str, Tensor] = {}
        kept: list[dict[str, Any]] = []
        for place, text in enumerate(shard.texts):
            made = model.embed(text, self.config.text_tokens)
            others = {name: _stored_text(made.others[name], text) for name in sorted(made.others)}
            embeds = _stored_text(made.tokens, text)
            tensors[f"{place:06d}"] = embeds
            tensors |= {f"{place:06d}.{name}": one for name, one in others.items()}
            crc = checksum([embeds, *others.values()])
            kept.append({"place": place, "tokens": len(embeds), "crc32": crc})
            on_text()
        write_shard(path, tensors, {"key": shard.key(self.recipe), "texts": kept})

    def _ahead(
        self, clips: Iterable[PlannedClip]
    ) -> Iterator[tuple[PlannedClip, Future[DecodedClip]]]:
        """Every clip with its content, a few of which are decoded in the background."""
        waiting: deque[tuple[PlannedClip, Future[DecodedClip]]] = deque()
        with ThreadPoolExecutor(AHEAD, thread_name_prefix="clips") as pool:
            for clip in clips:
                waiting.append((clip, pool.submit(self._decoded, clip)))
                if len(waiting) > AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()

    def _decoded(self, clip: PlannedClip) -> DecodedClip:
        pixels = self._pixels(clip)
        if self.sounds is None:
            return DecodedClip(pixels)
        samples = self.sounds.samples(clip.bucket.frames)
        if clip.is_picture:
            return DecodedClip(pixels, torch.zeros(2, samples))
        info = _probed(self.folder / clip.file)
        sound = read_sound(info, start=clip.start, samples=samples, rate=self.sounds.rate)
        return DecodedClip(pixels, sound)

    def _pixels(self, clip: PlannedClip) -> Tensor:
        """uint8 (F, H, W, 3)."""
        path, bucket = self.folder / clip.file, clip.bucket
        if clip.is_picture:
            return read_picture(path, height=bucket.height, width=bucket.width)
        return read_clip(
            _probed(path),
            start=clip.start,
            num_frames=bucket.frames,
            fps=self.config.fps,
            height=bucket.height,
            width=bucket.width,
        )


def _stored_text(embeds: Tensor, text: str) -> Tensor:
    """As a shard keeps embeddings. Raises CacheError where they are not finite."""
    stored = embeds.to("cpu", STORED_TEXT).contiguous()
    if not bool(stored.isfinite().all()):
        raise CacheError(
            f"text_encoder gives embeddings that are not finite for {text[:100]!r}; compute"
            " in fp32 (--precision), or give another encoder"
        )
    return stored


@lru_cache(maxsize=64)
def _probed(path: Path) -> VideoInfo:
    """One look at a file serves all of its clips, which follow one another."""
    return probe_video(path)

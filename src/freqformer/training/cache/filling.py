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

from freqformer.media import VideoError, VideoInfo, probe_video, read_clip, to_unit
from freqformer.models.text import TextModel
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.pictures import read_picture
from freqformer.training.cache.planning import PlannedClip
from freqformer.training.cache.settings import CacheConfig
from freqformer.training.cache.shards import LatentShard, TextShard, checksum, write_shard
from freqformer.training.cache.vae import LatentsError, VideoVae
from freqformer.training.seeding import derive_generator

logger = logging.getLogger(__name__)

STORED_TEXT = torch.bfloat16
"""Of embeddings, whose largest values are beyond float16 in some encoders."""
AHEAD = 2
"""Clips that are decoded while one is coded."""


@dataclass(frozen=True)
class Filler:
    """What all shards of a cache are made with.

    Args:
        config: of the cache.
        folder: of the videos.
        recipe: the digest of all that a shard's content depends on.
    """

    config: CacheConfig
    folder: Path
    recipe: str

    def fill_latents(
        self, path: Path, shard: LatentShard, vae: VideoVae, on_clip: Callable[[], None]
    ) -> None:
        """Write a shard of latents. What can't be read is named in the log and in the shard.

        Args:
            path: of the shard.
            shard: what it holds.
            vae: that codes.
            on_clip: called after each.

        Raises:
            CacheError: where the shard can't be written.
        """
        tensors: dict[str, Tensor] = {}
        kept = []
        skipped = []
        for place, (clip, read) in enumerate(self._ahead(shard.clips)):
            try:
                pixels = read.result()
                generator = derive_generator(
                    self.config.seed, "latents", clip.file, str(clip.start)
                )
                # Bytes travel to the device, and are made numbers there.
                made = vae.code(to_unit(pixels.to(vae.device)), self.config.latents, generator)
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
        self, path: Path, shard: TextShard, model: TextModel, on_text: Callable[[], None]
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
            embeds = model.encode(text, self.config.text_tokens).to(STORED_TEXT).contiguous()
            if not bool(embeds.isfinite().all()):
                raise CacheError(
                    f"text_encoder gives embeddings that are not finite for {text[:100]!r}; compute"
                    " in fp32 (--precision), or give another encoder"
                )
            tensors[f"{place:06d}"] = embeds
            kept.append({"place": place, "tokens": len(embeds), "crc32": checksum([embeds])})
            on_text()
        write_shard(path, tensors, {"key": shard.key(self.recipe), "texts": kept})

    def _ahead(self, clips: Iterable[PlannedClip]) -> Iterator[tuple[PlannedClip, Future[Tensor]]]:
        """Every clip with its pixels, a few of which are decoded in the background."""
        waiting: deque[tuple[PlannedClip, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(AHEAD, thread_name_prefix="clips") as pool:
            for clip in clips:
                waiting.append((clip, pool.submit(self._pixels, clip)))
                if len(waiting) > AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()

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


@lru_cache(maxsize=64)
def _probed(path: Path) -> VideoInfo:
    """One look at a file serves all of its clips, which follow one another."""
    return probe_video(path)

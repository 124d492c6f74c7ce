"""The index of a cache: what it holds, where, and what was left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freqformer._files import check_seal, read_json, sealed, write_json
from freqformer.grid import Extents
from freqformer.models.chunked import Chunks, latent_frames
from freqformer.training.cache.buckets import Bucket
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.planning import Skipped

INDEX_FILE = "index.json"
FORMAT = "freqformer-cache-1"
MOST_BYTES = 1 << 30
TEXT_PIPELINE = "text_pipeline"
"""Of a recipe: the class of the pipeline in whose way captions were embedded; absent for those of
an encoder."""
IMAGE_PIPELINE = "image_pipeline"
"""Of a recipe: the class of the pipeline in whose way clips' first frames were coded too; absent
where they weren't."""
CONDITIONS = "conditions"
"""Of a recipe: the names of what that made of every clip."""
SOUND_ENCODER = "audio_vae"
"""Of a recipe, what tells the VAE of sound from others, absent where sound wasn't coded; and its
folder in a pipeline."""
SOUND_PIPELINE = "MiniMaxH3ModularPipeline"
_SHARD = re.compile(r"(latents|text)-\d{3,}-\d{5,}\.safetensors")
_REMEDY = "run the command that made the cache again, or choose another folder"


@dataclass(frozen=True)
class CachedClip:
    """One clip of a cache."""

    file: str
    start: float
    """Seconds."""
    bucket: int
    """Place in the index's buckets."""
    text: int
    """Place in the index's texts; -1 in a cache without text."""
    shard: str
    """File name."""
    place: int
    """In the shard."""
    crc32: int

    def __str__(self) -> str:
        return f"{self.file} from {self.start:.3f} s" if self.start else self.file


@dataclass(frozen=True)
class CachedText:
    """One caption's embeddings; the first of a cache is the empty one's."""

    shard: str
    place: int
    tokens: int
    crc32: int


@dataclass(frozen=True)
class CacheIndex:
    """What a cache holds."""

    recipe: dict[str, Any]
    """On what its content depends, fingerprints of the encoders included."""
    channels: int
    """Of latents."""
    compression: tuple[int, int]
    """Frames, and pixels of a side, that a latent stands for."""
    text_channels: int | None
    """None in a cache without text."""
    buckets: tuple[Bucket, ...]
    clips: tuple[CachedClip, ...]
    texts: tuple[CachedText, ...]
    skipped: tuple[Skipped, ...]
    chunks: Chunks | None = None
    """Of a VAE that codes videos in chunks of frames."""

    @property
    def text_pipeline(self) -> str | None:
        """The class of the pipeline in whose way captions were embedded; None for an encoder's."""
        return self.recipe.get(TEXT_PIPELINE)

    @property
    def image_pipeline(self) -> str | None:
        """The class of the pipeline in whose way first frames were coded too; None where not."""
        return self.recipe.get(IMAGE_PIPELINE)

    @property
    def sound_pipeline(self) -> str | None:
        """The class of the pipeline in whose way sound was coded too; None where not."""
        return SOUND_PIPELINE if SOUND_ENCODER in self.recipe else None

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of what every clip has beside its latents."""
        return tuple(self.recipe.get(CONDITIONS, ()))

    @property
    def text_length(self) -> int:
        """Tokens of the longest caption."""
        return max((text.tokens for text in self.texts), default=0)

    def latent_size(self, bucket: int) -> Extents:
        """(F, H, W) of the latents of a bucket."""
        time, space = self.compression
        frames, height, width = self.buckets[bucket].size
        coded = latent_frames(frames, time, self.chunks)
        if coded is None:
            raise CacheError(f"{INDEX_FILE} has clips of {frames} frames; {_REMEDY}")
        return (coded, height // space, width // space)

    def clips_by_bucket(self) -> list[list[int]]:
        """The numbers of the clips of every bucket."""
        found: list[list[int]] = [[] for _ in self.buckets]
        for number, clip in enumerate(self.clips):
            found[clip.bucket].append(number)
        return found

    def most_common_bucket(self) -> Bucket:
        """The bucket of most clips; of two, the longer."""
        counts = Counter(clip.bucket for clip in self.clips)
        chosen = max(counts, key=lambda place: (counts[place], self.buckets[place].size))
        return self.buckets[chosen]

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            CacheError: where it can't be written.
        """
        record = {
            "format": FORMAT,
            "recipe": self.recipe,
            "channels": self.channels,
            "compression": list(self.compression),
            "text_channels": self.text_channels,
            "buckets": [list(bucket.size) for bucket in self.buckets],
            "clips": [list(asdict(clip).values()) for clip in self.clips],
            "texts": [list(asdict(text).values()) for text in self.texts],
            "skipped": [[one.file, one.reason] for one in self.skipped],
        }
        if self.chunks is not None:
            record["chunks"] = list(self.chunks)
        write_json(folder / INDEX_FILE, sealed(record), indent=None, error=CacheError)

    @classmethod
    def read(cls, folder: Path) -> CacheIndex:
        """The index of a cache.

        Raises:
            CacheError: for a folder without one, or one that is damaged.
        """
        path = folder / INDEX_FILE
        if not path.is_file():
            what = "is not done" if (folder / "plan.json").is_file() else "is no cache"
            raise CacheError(f"{folder} {what}: it has no {INDEX_FILE}; {_REMEDY}")
        record = read_json(path, remedy=_REMEDY, most_bytes=MOST_BYTES, error=CacheError)
        if record.get("format") != FORMAT:
            raise CacheError(
                f"{path} has format {record.get('format')!r}; {FORMAT!r} is allowed: read it with"
                " the version that wrote it"
            )
        check_seal(record, path, remedy=_REMEDY, error=CacheError)
        try:
            index = cls._of(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CacheError(f"{path} is damaged ({error!r}); {_REMEDY}") from error
        if outside := sorted(name for name in index.shards if not _SHARD.fullmatch(name)):
            raise CacheError(f"{path} names {outside[:3]}, which are no files of it; {_REMEDY}")
        return index

    @property
    def shards(self) -> set[str]:
        """The names of its files of tensors."""
        return {clip.shard for clip in self.clips} | {text.shard for text in self.texts}

    @classmethod
    def _of(cls, record: dict[str, Any]) -> CacheIndex:
        return cls(
            recipe=dict(record["recipe"]),
            channels=record["channels"],
            compression=_pair(record["compression"]),
            text_channels=record["text_channels"],
            buckets=tuple(Bucket(*size) for size in record["buckets"]),
            clips=tuple(CachedClip(*values) for values in record["clips"]),
            texts=tuple(CachedText(*values) for values in record["texts"]),
            skipped=tuple(Skipped(*values) for values in record["skipped"]),
            chunks=Chunks(*record["chunks"]) if "chunks" in record else None,
        )


def is_cache(folder: Path) -> bool:
    """Whether a folder holds a cache, done or not."""
    return any((folder / name).is_file() for name in (INDEX_FILE, "plan.json"))


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return (first, second)

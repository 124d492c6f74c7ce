"""Files of latents and of texts: which clips each holds, and writing and reading them.

A shard is a safetensors file, whole or absent, with a record of what it holds in its header. Its
content follows from the plan and the encoders alone: a run that was killed makes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from freqformer._files import writing_file
from freqformer.models.latents import latent_size
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.planning import Part, PlannedClip

RECORD = "freqformer"
"""Of a shard's header."""
TEXTS_OF_A_SHARD = 256
MOST_CLIPS = 4096


@dataclass(frozen=True)
class LatentShard:
    """Clips of one bucket."""

    name: str
    clips: tuple[PlannedClip, ...]

    def key(self, recipe: str) -> str:
        """What the file's content follows from."""
        return _digest(recipe, [[c.file, c.start, c.bucket.size] for c in self.clips])


@dataclass(frozen=True)
class TextShard:
    """Captions, each once."""

    name: str
    texts: tuple[str, ...]

    def key(self, recipe: str) -> str:
        """What the file's content follows from."""
        return _digest(recipe, list(self.texts))


def latent_shards(
    parts: Sequence[Part], vae: Any, channels: int, most_bytes: float
) -> list[LatentShard]:
    """The shards of all clips, in order.

    Args:
        parts: of the plan.
        vae: whose latents they hold.
        channels: of all that is kept of a clip, at the size of its latents.
        most_bytes: of a shard, unless one clip takes more.
    """
    shards = []
    for number, part in enumerate(parts):
        place = 0
        clips = sorted(part.clips, key=lambda clip: clip.bucket.size)
        for bucket, group in groupby(clips, key=lambda clip: clip.bucket):
            frames, height, width = latent_size(bucket.size, vae)
            one = channels * frames * height * width * 2
            count = min(max(int(most_bytes // one), 1), MOST_CLIPS)
            for chunk in _chunks(list(group), count):
                shards.append(LatentShard(f"latents-{number:03d}-{place:05d}.safetensors", chunk))
                place += 1
    return shards


def text_shards(parts: Sequence[Part]) -> list[TextShard]:
    """The shards of all captions, the empty one first, in order."""
    seen: set[str] = set()
    shards = []
    for number, part in enumerate(parts):
        texts = dict.fromkeys(("", *(clip.caption for clip in part.clips)))
        fresh = [text for text in texts if text not in seen]
        seen.update(fresh)
        for place, chunk in enumerate(_chunks(fresh, TEXTS_OF_A_SHARD)):
            shards.append(TextShard(f"text-{number:03d}-{place:05d}.safetensors", chunk))
    return shards


def write_shard(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a shard, whole or not at all.

    Raises:
        CacheError: where it can't be written, a full disk included.
    """
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    with writing_file(path, error=CacheError) as new:
        save_file(dict(tensors), new, metadata={RECORD: text})


def read_record(path: Path, key: str) -> dict[str, Any] | None:
    """The record of a shard that is there and has this key; None for any other file, or none."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(RECORD, "{}"))
    except Exception:  # safetensors raises its own error, and what its parser raises
        return None
    return record if isinstance(record, dict) and record.get("key") == key else None


def read_tensors(path: Path, names: Sequence[str], crc32: int) -> list[Tensor]:
    """Tensors of a shard, checked.

    Raises:
        CacheError: for a file that is missing, damaged, or lacks them.
    """
    remedy = "remove that file and run the command that made the cache again: it makes it anew"
    try:
        with safe_open(path, framework="pt") as file:
            found = [file.get_tensor(name) for name in names]
    except Exception as error:  # as above
        raise CacheError(f"{path} can't be read ({error}); {remedy}") from error
    if checksum(found) != crc32:
        raise CacheError(f"{path} is damaged: the checksum of {names[0]} differs; {remedy}")
    return found


def checksum(tensors: Sequence[Tensor]) -> int:
    """CRC-32 of the bytes of tensors, one after the other."""
    total = 0
    for tensor in tensors:
        total = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, total)
    return total


def _chunks(items: Sequence[Any], count: int) -> Iterator[tuple[Any, ...]]:
    for first in range(0, len(items), count):
        yield tuple(items[first : first + count])


def _digest(recipe: str, content: Any) -> str:
    return hashlib.sha256(json.dumps([recipe, content]).encode()).hexdigest()[:32]

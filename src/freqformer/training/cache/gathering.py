"""The index, from the plan and the records of the shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.index import CachedClip, CachedText, CacheIndex
from freqformer.training.cache.planning import Part, Skipped
from freqformer.training.cache.shards import LatentShard, TextShard, read_record
from freqformer.training.cache.vae import VideoVae
from freqformer.training.loader import listed


def gather(
    folder: Path,
    recipe: dict[str, Any],
    digest: str,
    vae: VideoVae,
    parts: Sequence[Part],
    shards: tuple[Sequence[LatentShard], Sequence[TextShard]],
) -> CacheIndex:
    """The index of a cache whose shards are all there.

    Args:
        folder: of the cache.
        recipe, digest: on what its content depends.
        vae: that it was made with.
        parts: of its plan.
        shards: of latents, and of texts.

    Raises:
        CacheError: for a shard that is missing or another's, and where no clip could be coded.
    """
    latents, texts = shards
    numbers, cached_texts = _texts(folder, digest, texts)
    buckets = sorted({clip.bucket for shard in latents for clip in shard.clips}, key=_size)
    clips = []
    skipped = [one for part in parts for one in part.skipped]
    for shard in latents:
        record = _record(folder, shard, digest)
        for entry in record["clips"]:
            clip = shard.clips[entry["place"]]
            clips.append(
                CachedClip(
                    file=clip.file,
                    start=clip.start,
                    bucket=buckets.index(clip.bucket),
                    text=numbers.get(clip.caption, -1),
                    shard=shard.name,
                    place=entry["place"],
                    crc32=entry["crc32"],
                )
            )
        for entry in record["skipped"]:
            skipped.append(Skipped(shard.clips[entry["place"]].file, entry["reason"]))
    if not clips:
        reasons = listed([one.reason for one in skipped])
        raise CacheError(f"{folder} holds no clip, since none could be coded:\n{reasons}")
    planned = {clip.file for part in parts for clip in part.clips}
    # What was left out at first may have been repaired, or described, since.
    early = {one.file for part in parts for one in part.skipped} & planned
    first = [one for part in parts for one in part.skipped if one.file in early]
    return CacheIndex(
        recipe=recipe,
        channels=vae.channels,
        compression=vae.compression,
        text_channels=_text_channels(folder, texts),
        buckets=tuple(buckets),
        clips=tuple(clips),
        texts=cached_texts,
        skipped=tuple(one for one in skipped if one not in first),
        chunks=vae.chunks,
    )


def _size(bucket: Any) -> tuple[int, int, int]:
    return bucket.size


def _texts(
    folder: Path, digest: str, shards: Sequence[TextShard]
) -> tuple[dict[str, int], tuple[CachedText, ...]]:
    """The number of every caption, and all of them."""
    numbers: dict[str, int] = {}
    found = []
    for shard in shards:
        for entry in _record(folder, shard, digest)["texts"]:
            numbers[shard.texts[entry["place"]]] = len(found)
            found.append(CachedText(shard.name, entry["place"], entry["tokens"], entry["crc32"]))
    return numbers, tuple(found)


def _text_channels(folder: Path, shards: Sequence[TextShard]) -> int | None:
    from safetensors import safe_open

    if not shards:
        return None
    with safe_open(folder / shards[0].name, framework="pt") as file:
        return int(file.get_slice("000000").get_shape()[1])


def _record(folder: Path, shard: LatentShard | TextShard, digest: str) -> dict[str, Any]:
    record = read_record(folder / shard.name, shard.key(digest))
    if record is None:
        raise CacheError(
            f"{folder / shard.name} is missing or was changed; run the same command again, which"
            " makes it anew"
        )
    return record

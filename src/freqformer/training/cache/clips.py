"""The clips of a cache as training takes them: every forward pass one bucket, each clip once an
epoch of its bucket."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

import torch

from freqformer.grid import Extents
from freqformer.models.text import padded
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.reading import LatentCache
from freqformer.training.loader import ClipSource
from freqformer.training.samples import TrainingSample
from freqformer.training.seeding import derive_generator, derive_seed
from freqformer.training.validation.held_out import choose_held_out

logger = logging.getLogger(__name__)

CAPTION_DROPOUT = 0.1
"""Share of clips that are shown with the empty caption, for guidance."""


class CachedClips(ClipSource):
    """An endless sequence of a cache's clips.

    It is made of blocks of `batch_size` clips of one bucket, so that each forward pass takes one
    block. Every bucket goes through its clips in random order, again and again; in an epoch each
    bucket has as many blocks as it has clips for, and blocks of all buckets are mixed. Where a
    bucket is follows from the number of the clip alone.

    Args:
        folder: of the cache.
        seed: of the order, of samples and of captions that are left out.
        batch_size: clips of a forward pass.
        caption_dropout: share of clips that are shown with the empty caption.
        held_out: clips that are not shown, chosen by the seed.
        first_frame: share of clips whose first frame the model is given; pictures have none.

    Raises:
        CacheError: for a folder without a cache that is done, or where no bucket has `batch_size`
            clips; those that have fewer are named in the log and left out.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        batch_size: int,
        caption_dropout: float = CAPTION_DROPOUT,
        held_out: int = 0,
        first_frame: float = 0.0,
    ) -> None:
        self.cache = LatentCache(folder)
        self._seed, self._batch = seed, batch_size
        self._dropout, self._first_frame = caption_dropout, first_frame
        self.held_out = choose_held_out(len(self.cache.index.clips), held_out, seed)
        """Numbers in the index of the clips that are not shown."""
        self._buckets = self._usable(set(self.held_out))
        self._blocks = lru_cache(maxsize=2)(self._blocks_of)
        self._order = lru_cache(maxsize=2 * len(self._buckets))(self._permutation)

    @property
    def channels(self) -> int:
        """Of latents."""
        return self.cache.index.channels

    @property
    def text_channels(self) -> int | None:
        """Of text embeddings; None in a cache without text."""
        return self.cache.index.text_channels

    @property
    def sizes(self) -> list[Extents]:
        """(F, H, W) of latents, the bucket with most clips first."""
        by_count = sorted(self._buckets, key=lambda bucket: -len(self._buckets[bucket]))
        return [self.cache.index.latent_size(bucket) for bucket in by_count]

    def load(self, index: int) -> TrainingSample:
        """Clip `index`. Raises CacheError, with the clip's name, where it can't be read."""
        number = self._number(index)
        clip = self.cache.index.clips[number]
        held = self.cache.clip(number, derive_generator(self._seed, "latents", index))
        latents = held.latents
        place = torch.rand((), generator=derive_generator(self._seed, "first frame", index))
        keeps = bool(place < self._first_frame) and latents.shape[1] > 1
        if clip.text < 0:
            return TrainingSample(latents, keeps_first=keeps, conditions=held.conditions)
        drawn = torch.rand((), generator=derive_generator(self._seed, "caption", index))
        text = self.cache.caption(0 if drawn < self._dropout else clip.text)
        # One length for all, so that any clips make a batch.
        together, mask = padded([text.tokens], self.cache.index.text_length)
        return TrainingSample(
            latents,
            together[0],
            mask[0],
            keeps_first=keeps,
            conditions={**held.conditions, **text.others},
        )

    def report(self, sample: TrainingSample) -> None:
        """What can't be read is an error, so there is nothing to report."""

    def describe(self, index: int) -> str:
        """The file that clip `index` is of, and where it begins in it."""
        return str(self.cache.index.clips[self._number(index)])

    def fingerprint(self) -> str:
        """Differs with the clips, their order, the batch size and both shares."""
        index = self.cache.index
        clips = (f"{clip} {clip.crc32}" for clip in index.clips)
        kept = (f"{bucket}: {len(numbers)}" for bucket, numbers in self._buckets.items())
        shares = (str(self._dropout), str(self._first_frame))
        parts = (self._seed, self._batch, *shares, *kept, *clips)
        return f"{derive_seed(*parts):x}"

    def _usable(self, held_out: set[int]) -> dict[int, list[int]]:
        """The numbers of the clips of every bucket that fills a forward pass."""
        index = self.cache.index
        found = {}
        for bucket, numbers in enumerate(index.clips_by_bucket()):
            kept = [number for number in numbers if number not in held_out]
            if len(kept) >= self._batch:
                found[bucket] = kept
            elif kept:
                logger.warning(
                    "left out: bucket %s of %s has %d clips, and a forward pass takes %d; lower"
                    " run.batch_size, or cache more clips of this size",
                    index.buckets[bucket],
                    self.cache.folder,
                    len(kept),
                    self._batch,
                )
        if not found:
            counts = ", ".join(
                f"{size}: {len(numbers)}"
                for size, numbers in zip(index.buckets, index.clips_by_bucket(), strict=True)
            )
            raise CacheError(
                f"{self.cache.folder} has no bucket with run.batch_size={self._batch} clips"
                f" ({counts}; {len(held_out)} held out); lower it, or cache more clips"
            )
        return found

    def _number(self, index: int) -> int:
        """The place in the cache's index of clip `index`."""
        block, place = divmod(index, self._batch)
        epoch = self._epoch(block)
        bucket, turn = self._blocks(epoch)[block - self._before(epoch)]
        numbers = self._buckets[bucket]
        again, position = divmod(turn * self._batch + place, len(numbers))
        return numbers[int(self._order(bucket, again)[position])]

    def _before(self, epoch: int) -> int:
        """Blocks of all epochs before this one."""
        return sum(epoch * len(numbers) // self._batch for numbers in self._buckets.values())

    def _epoch(self, block: int) -> int:
        """The epoch of a block."""
        clips = sum(len(numbers) for numbers in self._buckets.values())
        # Each bucket keeps less than a block for the next epoch.
        epoch = block * self._batch // clips
        while self._before(epoch + 1) <= block:
            epoch += 1
        return epoch

    def _blocks_of(self, epoch: int) -> list[tuple[int, int]]:
        """(bucket, which of its blocks) of an epoch, in order."""
        blocks = [
            (bucket, turn)
            for bucket, numbers in self._buckets.items()
            for turn in range(
                epoch * len(numbers) // self._batch, (epoch + 1) * len(numbers) // self._batch
            )
        ]
        generator = derive_generator(self._seed, "blocks", epoch)
        order = torch.randperm(len(blocks), generator=generator)
        return [blocks[place] for place in order.tolist()]

    def _permutation(self, bucket: int, again: int) -> torch.Tensor:
        generator = derive_generator(self._seed, "bucket", bucket, again)
        return torch.randperm(len(self._buckets[bucket]), generator=generator)

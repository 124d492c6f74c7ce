"""A cache that is done, read clip by clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from freqformer.models.text import ENCODER_FOLDER, TOKENIZER_FOLDER, TextFolders
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.index import CacheIndex
from freqformer.training.cache.prompts.families import PROMPTS
from freqformer.training.cache.prompts.family import PromptEmbeds
from freqformer.training.cache.shards import read_tensors
from freqformer.training.cache.sounds.source import SOUND, SOUND_NOISE
from freqformer.training.cache.vae import LOGVAR, MEAN, SAMPLE, VAE_FOLDER, sampled

NAMES = {"distribution": (MEAN, LOGVAR), "sample": (SAMPLE,), "mean": (MEAN,)}
"""The tensors of a clip, by `CacheConfig.latents`."""


@dataclass(frozen=True)
class ClipTensors:
    """What a cache holds of one clip, float32 on the CPU."""

    latents: Tensor
    """(C, F, H, W)."""
    conditions: dict[str, Tensor]
    """What a pipeline's transformer is told besides, by the names of `VelocityModel`'s
    arguments."""


class LatentCache:
    """A cache, read from several threads at once.

    Args:
        folder: that `make_cache` filled.

    Raises:
        CacheError: for a folder that holds none, or none that is done.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = CacheIndex.read(folder)
        self._names = (*NAMES[self.index.recipe["latents"]], *self.index.conditions)
        self._others = self._names_of_others()
        if missing := sorted(name for name in self.index.shards if not (folder / name).is_file()):
            raise CacheError(
                f"{folder} lacks {len(missing)} of its files, like {missing[:3]}; run the command"
                " that made the cache again"
            )

    def latents(self, number: int, generator: torch.Generator) -> Tensor:
        """The latents of a clip, (C, F, H, W) float32; as `clip`."""
        return self.clip(number, generator).latents

    def clip(self, number: int, generator: torch.Generator) -> ClipTensors:
        """What the cache holds of a clip, with latents scaled as the model sees them.

        Args:
            number: of the clip in the index.
            generator: of the sample, where the cache keeps a distribution.

        Raises:
            CacheError: for a file that is missing or damaged, and latents that are not finite,
                naming the clip.
        """
        clip = self.index.clips[number]
        names = [f"{clip.place:06d}.{name}" for name in self._names]
        try:
            tensors = read_tensors(self.folder / clip.shard, names, clip.crc32)
        except CacheError as error:
            raise CacheError(f"{clip} can't be read from the cache: {error}") from error
        for tensor in tensors:
            if not bool(tensor.isfinite().all()):
                raise CacheError(
                    f"{clip} has latents that are not finite in {self.folder / clip.shard}; remove"
                    " that file and run the command that made the cache again"
                )
        held = dict(zip(self._names, tensors, strict=True))
        conditions = {name: held[name].float() for name in self.index.conditions}
        if LOGVAR in held:
            latents = sampled(held[MEAN], held[LOGVAR], generator)
        else:
            latents = tensors[0].float()
        if SOUND in conditions:
            noise = torch.randn(conditions[SOUND].shape, generator=generator)
            conditions[SOUND_NOISE] = noise
        return ClipTensors(latents, conditions)

    def text(self, number: int) -> Tensor:
        """The embeddings of a caption, (L, E) float32; that of number 0 is empty.

        Raises:
            CacheError: as `latents`.
        """
        return self.caption(number).tokens

    def caption(self, number: int) -> PromptEmbeds:
        """All that a caption is embedded as, float32; that of number 0 is empty.

        Raises:
            CacheError: as `latents`.
        """
        text = self.index.texts[number]
        place = f"{text.place:06d}"
        names = [place, *(f"{place}.{name}" for name in self._others)]
        tokens, *others = read_tensors(self.folder / text.shard, names, text.crc32)
        told = zip(self._others, others, strict=True)
        return PromptEmbeds(tokens.float(), {name: x.float() for name, x in told})

    def _names_of_others(self) -> tuple[str, ...]:
        """Of what captions have beside their tokens' embeddings."""
        name = self.index.text_pipeline
        if name is None:
            return ()
        if name not in PROMPTS:
            raise CacheError(
                f"{self.folder} has captions in the way of a {name!r}; {', '.join(PROMPTS)} are"
                " allowed: read it with the version that wrote it"
            )
        return PROMPTS[name].others

    @property
    def vae_folder(self) -> Path:
        """The VAE that the latents are of."""
        return self.folder / VAE_FOLDER

    @property
    def text_folders(self) -> TextFolders | None:
        """The encoder that the embeddings are of; None in a cache without text, or with a whole
        pipeline's."""
        if self.index.text_channels is None or self.index.text_pipeline is not None:
            return None
        return TextFolders(self.folder / ENCODER_FOLDER, self.folder / TOKENIZER_FOLDER)

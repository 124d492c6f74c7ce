"""`freqformer cache`: the plan, the shards, the index, one after the other."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from freqformer._files import output_folder, read_json, write_json
from freqformer._interrupt import between_steps
from freqformer._progress import ProgressBar, progress_bar
from freqformer.models.text import ENCODER_FOLDER, TOKENIZER_FOLDER
from freqformer.training.cache.buckets import Buckets
from freqformer.training.cache.captions import Captions, read_captions
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.filling import ClipCoders, Filler
from freqformer.training.cache.fingerprints import copy_encoder, fingerprint
from freqformer.training.cache.first_frames.source import (
    FirstFrames,
    FirstFrameSource,
    find_first_frames,
)
from freqformer.training.cache.gathering import gather
from freqformer.training.cache.index import (
    CONDITIONS,
    IMAGE_PIPELINE,
    INDEX_FILE,
    MOST_BYTES,
    SOUND_ENCODER,
    TEXT_PIPELINE,
    CacheIndex,
)
from freqformer.training.cache.planning import (
    Part,
    check_captions,
    find_files,
    make_part,
    new_files,
)
from freqformer.training.cache.processes import Team, team
from freqformer.training.cache.settings import CacheConfig
from freqformer.training.cache.shards import (
    LatentShard,
    TextShard,
    latent_shards,
    read_record,
    text_shards,
)
from freqformer.training.cache.sounds.source import Sounds, SoundSource, find_sounds
from freqformer.training.cache.texts import CaptionEncoder, CaptionSource, find_captioning
from freqformer.training.cache.vae import VAE_FOLDER, VideoVae, find_vae
from freqformer.training.loader import listed

logger = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
PLAN_FORMAT = "freqformer-cache-plan-1"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_REMEDY = "choose another output folder, or remove the cache"


@dataclass(frozen=True)
class _Encoders:
    """What a cache is made with, and where it is."""

    vae_folder: Path
    captioning: CaptionSource | None
    first_frames: FirstFrameSource | None
    sounds: SoundSource | None
    recipe: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of the recipe."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()[:32]


def make_cache(config: CacheConfig) -> CacheIndex:
    """Code all clips of a folder of videos, and embed their captions; goes on where an earlier call
    was stopped, and adds files that came since.

    Under torchrun several processes share the work. Files that can't be read are named in the log
    and in the index, and left out.

    Args:
        config: what to cache, with what, and where.

    Returns: the index of the cache.

    Raises:
        ValueError: for a VAE or text encoder of another kind; captions that can't be read, or
            without their other half; a folder that holds another cache.
        KeyboardInterrupt: (`Interrupted`) after a signal, once the shard under way is kept.
    """
    output = Path(config.output)
    with team() as processes, _alone(output, processes), between_steps("finishing a file") as stop:
        encoders = processes.from_first(lambda: _find_encoders(config))
        vae = VideoVae.load(encoders.vae_folder, DTYPES[config.precision], tiling=config.tiling)
        folder, _ = find_files(Path(config.videos))
        parts = processes.from_first(lambda: _plan(config, encoders, vae))
        channels = vae.channels * (2 if config.latents == "distribution" else 1)
        if encoders.first_frames is not None:
            channels += encoders.first_frames.channels(vae.channels)
        most_bytes = config.shard_mib * 2**20
        latents = latent_shards(parts, vae.vae, channels, most_bytes)
        texts = [] if encoders.captioning is None else text_shards(parts)
        filler = Filler(config, folder, encoders.digest, encoders.sounds)
        missing = processes.from_first(
            lambda: [
                shard
                for shard in [*texts, *latents]
                if read_record(output / shard.name, shard.key(encoders.digest)) is None
            ]
        )
        work = _Work(output, filler, encoders, vae, processes.device(config.device))
        shown = config.progress and processes.is_first
        for shard in work.shards(processes.own(missing), shown):
            if not stop.asked:
                work.fill(shard)
        if processes.any_of(stop.asked):
            stop.signal = stop.signal or signal.SIGTERM
            raise stop.interrupted(f": {output} keeps what is done, the same command goes on")
        return processes.from_first(lambda: _finish(output, encoders, vae, parts, latents, texts))


class _Work:
    """Fills shards; loads the text encoder when it is first needed.

    Args:
        output: folder of the cache.
        filler: of shards.
        encoders: where they are.
        vae: loaded.
        device: to compute on.
    """

    def __init__(
        self,
        output: Path,
        filler: Filler,
        encoders: _Encoders,
        vae: VideoVae,
        device: torch.device,
    ) -> None:
        self._output, self._filler, self._encoders = output, filler, encoders
        self._vae, self._device = vae, device
        self._text: CaptionEncoder | None = None
        self._first_frames: FirstFrames | None = None
        self._sounds: Sounds | None = None
        self._bar = ProgressBar(None)

    def shards(
        self, missing: Sequence[TextShard | LatentShard], shown: bool
    ) -> Iterator[TextShard | LatentShard]:
        """The shards that are missing, texts first, with a bar over what they hold."""
        total = sum(len(_held(shard)) for shard in missing)
        with progress_bar("caching", total, enabled=shown and total > 0, counted="items") as bar:
            self._bar = bar
            yield from missing

    def fill(self, shard: TextShard | LatentShard) -> None:
        """Write one."""
        path = self._output / shard.name
        if isinstance(shard, TextShard):
            self._filler.fill_texts(path, shard, self._text_model(), self._bar.advance)
            return
        # Both at once may be more than the device holds.
        self._text = None
        self._vae.vae.to(self._device)
        if self._first_frames is None and self._encoders.first_frames is not None:
            dtype = DTYPES[self._filler.config.precision]
            self._first_frames = self._encoders.first_frames.load(dtype, self._device)
        if self._sounds is None and self._encoders.sounds is not None:
            self._sounds = self._encoders.sounds.load(self._device)
        coders = ClipCoders(self._vae, self._first_frames, self._sounds)
        self._filler.fill_latents(path, shard, coders, self._bar.advance)

    def _text_model(self) -> CaptionEncoder:
        if self._text is None:
            source = self._encoders.captioning
            assert source is not None
            self._text = source.load(DTYPES[self._filler.config.precision], self._device)
        return self._text


def _held(shard: TextShard | LatentShard) -> Sequence[Any]:
    return shard.texts if isinstance(shard, TextShard) else shard.clips


@contextmanager
def _alone(output: Path, processes: Team) -> Iterator[None]:
    """Keep other runs out of the folder; the first process holds the lock for all."""
    names = (INDEX_FILE, PLAN_FILE, VAE_FOLDER, ENCODER_FOLDER, TOKENIZER_FOLDER)
    lock = output_folder(output, "cache", names, error=CacheError)
    with lock if processes.is_first else nullcontext():
        yield


def _find_encoders(config: CacheConfig) -> _Encoders:
    vae = find_vae(Path(config.vae))
    recipe = {**config.recipe(), "vae": fingerprint([vae]), "text_encoder": None}
    first_frames = find_first_frames(Path(config.vae))
    if first_frames is not None:
        recipe[IMAGE_PIPELINE] = first_frames.pipeline
        recipe[CONDITIONS] = list(first_frames.names)
        recipe["image_encoder"] = first_frames.fingerprint()
    sounds = find_sounds(Path(config.vae))
    if sounds is not None:
        sounds.check_fps(config.fps)
        recipe[CONDITIONS] = [*recipe.get(CONDITIONS, ()), *sounds.names]
        recipe[SOUND_ENCODER] = sounds.fingerprint()
    if config.text_encoder is None:
        return _Encoders(vae, None, first_frames, sounds, recipe)
    source = find_captioning(Path(config.text_encoder))
    recipe["text_encoder"] = source.fingerprint()
    if source.pipeline is not None:
        recipe[TEXT_PIPELINE] = source.pipeline
    return _Encoders(vae, source, first_frames, sounds, recipe)


def _plan(config: CacheConfig, encoders: _Encoders, vae: VideoVae) -> list[Part]:
    """The parts of the plan, with one more where there are new files; written to the cache."""
    folder, files = find_files(Path(config.videos))
    captions = _captions(config, folder, files)
    buckets = Buckets.of(
        config.sizes,
        config.frames,
        config.fps,
        compression=vae.compression,
        multiple=config.multiple,
        chunks=vae.chunks,
    )
    path = Path(config.output) / PLAN_FILE
    parts = _read_plan(path, encoders.recipe) if path.is_file() else []
    fresh = new_files(folder, files, parts)
    if captions is not None:
        check_captions(captions, parts)
        fresh = [name for name in fresh if name in captions.by_file]
    if not fresh:
        return parts
    with progress_bar("looking", len(fresh), enabled=config.progress, counted="files") as bar:
        part = make_part(folder, fresh, buckets, captions, bar.advance)
    if not (part.clips or parts):
        reasons = [one.reason for one in part.skipped]
        raise CacheError(f"{folder} holds nothing that can be cached:\n{listed(reasons)}")
    parts = [*parts, part]
    record = {
        "format": PLAN_FORMAT,
        "recipe": encoders.recipe,
        "parts": [one.to_record() for one in parts],
    }
    write_json(path, record, indent=None, error=CacheError)
    return parts


def _captions(config: CacheConfig, folder: Path, files: Sequence[str]) -> Captions | None:
    """The captions of the files; None for a cache without text.

    Raises:
        CacheError: where one half is missing of what belongs together.
    """
    if config.text_encoder is None:
        return None
    captions = read_captions(folder, files)
    if Path(config.videos).is_file():
        # Captions of its neighbours are none of its business.
        captions = replace(captions, without_file=())
    if not captions.by_file:
        raise CacheError(
            f"{folder} holds no caption of any video; put one into a .txt beside each, or into"
            " captions.jsonl or videos2caption.json, or leave out text_encoder"
        )
    if captions.problems and not config.skip_unmatched:
        raise CacheError(
            f"{folder} holds {len(captions.problems)} files without their other half:\n"
            f"{listed(captions.problems)}\nadd or remove them, or leave them out:"
            " skip_unmatched=True (--skip-unmatched)"
        )
    for problem in captions.problems:
        logger.warning("skipped: %s", problem)
    return captions


def _read_plan(path: Path, recipe: dict[str, Any]) -> list[Part]:
    """The parts of a plan, which must be of this recipe."""
    record = read_json(path, remedy=_REMEDY, most_bytes=MOST_BYTES, error=CacheError)
    then = record.get("recipe")
    if record.get("format") != PLAN_FORMAT or not isinstance(then, dict):
        raise CacheError(f"{path} is no plan of format {PLAN_FORMAT!r}; {_REMEDY}")
    changed = [name for name in recipe | then if then.get(name) != recipe.get(name)]
    if changed:
        told = ", ".join(f"{n} was {then.get(n)!r} and is {recipe.get(n)!r}" for n in changed)
        raise CacheError(
            f"{path.parent} is a cache made otherwise: {told}; cache with the same, or {_REMEDY}"
        )
    try:
        return [Part.from_record(one) for one in record["parts"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheError(f"{path} is damaged ({error!r}); {_REMEDY}") from error


def _finish(
    output: Path,
    encoders: _Encoders,
    vae: VideoVae,
    parts: Sequence[Part],
    latents: Sequence[LatentShard],
    texts: Sequence[TextShard],
) -> CacheIndex:
    """Copy the encoders into the cache and write its index."""
    copy_encoder(encoders.vae_folder, output / VAE_FOLDER)
    if encoders.captioning is not None:
        encoders.captioning.copy(output)
    index = gather(output, encoders.recipe, encoders.digest, vae, parts, (latents, texts))
    index.write(output)
    return index

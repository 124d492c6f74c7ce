"""The dense model of a folder, and the clips that it is converted on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from freqformer._files import read_json
from freqformer._optional import needs
from freqformer.conversion.call_feed import CallFeed
from freqformer.conversion.calls import CallFolder
from freqformer.conversion.config import ConvertConfig
from freqformer.conversion.diffusers_pair import DiffusersPair
from freqformer.conversion.feeds import ClipFeed
from freqformer.conversion.own_pair import OwnPair
from freqformer.conversion.pairs import Pair
from freqformer.distributed import make_mesh
from freqformer.integrations.diffusers.families import FAMILIES
from freqformer.integrations.diffusers.velocity import VelocityModel, VelocitySettings
from freqformer.integrations.diffusers.velocity.families import VELOCITIES
from freqformer.models.loading import align_parameters
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.training.cache.clips import CachedClips
from freqformer.training.cache.fingerprints import fingerprint
from freqformer.training.cache.index import CacheIndex
from freqformer.training.cache.pipeline_index import find_index
from freqformer.training.cache.reading import LatentCache
from freqformer.training.finetuning.folder import PipelineFolder
from freqformer.training.loader import ClipSource
from freqformer.training.parallel_config import ParallelConfig
from freqformer.training.sharding import StepShards
from freqformer.training.sources import clip_source, given_source

logger = logging.getLogger(__name__)

INDEX_FILE = "model_index.json"
OWN = "FreqFormerTransformer3DModel"
GUIDANCE_SCALE = 6.0
"""That a transformer which learned guidance by distillation is told: what `HunyuanVideoPipeline`
tells it where nothing else is asked for."""
REMEDY = "give a folder that save_pretrained wrote, with model_index.json and a transformer in it"


def pipeline_index(folder: Path) -> dict[str, Any]:
    """What model_index.json of a pipeline's folder holds, or that of a modular pipeline.

    Raises:
        ValueError: for another kind of folder, saying what it is.
    """
    if (folder / "pipeline" / INDEX_FILE).is_file():
        raise ValueError(
            f"pipeline is {folder}, the output of a training run; its pipeline is allowed: give "
            f"{folder / 'pipeline'}"
        )
    index = find_index(folder)
    if index is None:
        what = "does not exist"
        if folder.exists():
            what = "holds no model_index.json" if folder.is_dir() else "is a file"
        for name, kind in (
            ("adapter.json", "an adapter"),
            ("index.json", "a cache"),
            ("config.json", "a single model"),
        ):
            if (folder / name).is_file():
                what = f"is {kind}"
        raise ValueError(
            f"pipeline is {folder}, which {what}; a saved pipeline is allowed: {REMEDY}"
        )
    return read_json(index, remedy=REMEDY)


def transformer_kind(folder: Path, part: str) -> str:
    """The class of a pipeline's transformer.

    Args:
        folder: of the pipeline.
        part: the transformer's name in it.

    Raises:
        ValueError: for a folder without a pipeline, or a transformer that is not there or not
            known.
    """
    # A library and a class, and in a modular pipeline where its files are.
    entry = pipeline_index(folder).get(part)
    kind = entry[1] if isinstance(entry, list) and len(entry) > 1 else None
    if kind not in (OWN, *FAMILIES):
        raise ValueError(
            f"pipeline is {folder} with a {kind} as {part}; {OWN}, {', '.join(FAMILIES)} are "
            "allowed"
        )
    return kind


def load_transformer(config: ConvertConfig, kind: str, device: torch.device) -> Any:
    """The transformer of a pipeline of diffusers, from safetensors; nothing else is loaded.

    Args:
        config: of the run.
        kind: the transformer's class.
        device: that computes.
    """
    with needs("model"):
        import diffusers

    model = getattr(diffusers, kind)
    loaded = model.from_pretrained(
        config.pipeline,
        subfolder=config.part,
        torch_dtype=torch.bfloat16 if config.run.precision == "bf16" else torch.float32,
        use_safetensors=True,
        local_files_only=True,
    )
    align_parameters(loaded)
    if config.run.gradient_checkpointing:
        loaded.enable_gradient_checkpointing()
    # Weights that ranks share go to the device block by block.
    return loaded.to(device) if config.run.parallel.dp_shard == 1 else loaded


def load_pair(config: ConvertConfig, device: torch.device, source: ClipSource) -> Pair:
    """The dense model of the config's pipeline, and what it is to be turned into.

    Args:
        config: of the run.
        device: that computes.
        source: of the clips.

    Raises:
        ValueError: for folders and models that can't be converted, and clips that they don't take.
    """
    folder = Path(config.pipeline)
    kind = transformer_kind(folder, config.part)
    half = config.run.precision == "bf16"
    if kind == OWN:
        pair: Pair = _own_pair(config, folder, device, source, half=half)
    else:
        index = _check_cache(config, folder, kind)
        transformer = load_transformer(config, kind, device)
        asked = VelocityModel(transformer, velocity_settings(folder, index))
        asked.check_trainable_from_cache()
        pair = DiffusersPair(transformer, config.adapter, asked)
    pair.check_clips(source.channels, source.text_channels)
    pair.check_sizes(source.sizes)
    return pair


def load_called(
    config: ConvertConfig, device: torch.device, shards: StepShards
) -> tuple[DiffusersPair, CallFeed]:
    """The dense model of the config's pipeline, and its recorded calls.

    Args:
        config: of the run, with calls.
        device: that computes.
        shards: this process's calls of a step.

    Raises:
        ValueError: for models that are called otherwise, and calls of others.
    """
    folder = Path(config.pipeline)
    kind = transformer_kind(folder, config.part)
    calls = CallFolder.read(str(config.calls))
    if kind != calls.transformer:
        raise ValueError(
            f"calls are of a {calls.transformer}, and {folder} has a {kind}; the same is allowed: "
            "record calls of this pipeline"
        )
    transformer = load_transformer(config, kind, device)
    feed = CallFeed(calls, config, device, transformer.dtype, shards)
    return DiffusersPair(transformer, config.adapter), feed


def share_teacher(pair: Pair, parallel: ParallelConfig, processes: int, kind: str) -> None:
    """Let processes share the dense model's weights, where that is asked for.

    Args:
        pair: loaded alike in all of them.
        parallel: degrees.
        processes: of the run.
        kind: of device, `cuda` or `cpu`.

    Raises:
        ValueError: for degrees that don't fit the number of processes.
    """
    if parallel.dp_shard > 1:
        assert isinstance(pair, DiffusersPair)
        copies = parallel.copies(processes)
        pair.share_teacher(make_mesh(copies, parallel.dp_shard, device_type=kind))


def _own_pair(
    config: ConvertConfig, folder: Path, device: torch.device, source: ClipSource, *, half: bool
) -> OwnPair:
    if config.run.parallel.dp_shard > 1:
        raise ValueError(
            f"run.parallel.dp_shard is {config.run.parallel.dp_shard}, and pipeline {folder} holds"
            " a model of this package; 1 is allowed, with a copy of the model in every process:"
            " leave it out"
        )
    if config.data.cache is not None:
        check_vae(config.data.cache, folder)
    pipeline = FreqFormerPipeline.from_pretrained(folder)
    model = pipeline.transformer.float().to(device)
    data = config.data
    sizes = source.sizes or [(data.num_frames, data.height, data.width)]
    pair = OwnPair(pipeline, config.adapter, model.grid_for(sizes[0]), half=half)
    if config.run.gradient_checkpointing:
        pair.enable_gradient_checkpointing()
    return pair


def run_source(config: ConvertConfig, clips: Any) -> ClipSource:
    """The clips of a run: those that are given, or those of its config.

    Args:
        config: of the run.
        clips: as in `freqformer.training.train`, or None.
    """
    run = config.run
    if clips is None:
        return clip_source(config.data, run.seed, run.batch_size)
    channels = 3
    return given_source(clips, config.data, run.seed, channels)


def _check_cache(config: ConvertConfig, folder: Path, kind: str) -> CacheIndex:
    """The index of the cache that a transformer of diffusers needs."""
    if config.data.cache is None:
        raise ValueError(
            f"pipeline has a {kind}, which takes latents, and data.cache is None; a cache is "
            f"allowed: freqformer cache videos/ --vae {folder / 'vae'} --text-encoder {folder}"
        )
    if kind in VELOCITIES and VELOCITIES[kind].takes_sound and config.run.batch_size != 1:
        raise ValueError(
            f"run.batch_size is {config.run.batch_size}, and a {kind} is asked about one clip at a "
            "time, since nothing is padded; 1 is allowed: raise run.accumulation"
        )
    cache = LatentCache(Path(config.data.cache))
    PipelineFolder(folder).check_cache(cache)
    return cache.index


def check_vae(cache: str, folder: Path) -> CacheIndex:
    """The index of a cache, which was made by the VAE of this pipeline.

    Args:
        cache: its folder.
        folder: of the pipeline.

    Raises:
        ValueError: for a cache of another VAE.
    """
    index = CacheIndex.read(Path(cache))
    vae = folder / "vae"
    if vae.is_dir():
        own = fingerprint([vae])
        if index.recipe.get("vae") != own:
            raise ValueError(
                f"{cache} was made by another VAE ({index.recipe.get('vae')}) than {vae} ({own}); "
                "latents of another VAE mean nothing to this model: make the cache again with "
                f"--vae {vae}"
            )
    return index


def velocity_settings(folder: Path, index: CacheIndex) -> VelocitySettings:
    """What a transformer's arguments depend on, by its pipeline and a cache.

    Args:
        folder: of the pipeline.
        index: of the cache.
    """
    expands = bool(pipeline_index(folder).get("expand_timesteps", False))
    shifts = PipelineFolder(folder).flow_shifts()
    return VelocitySettings(
        fps=float(index.recipe["fps"]),
        compression=index.compression,
        expand_timesteps=expands,
        guidance_scale=GUIDANCE_SCALE,
        conditions=index.conditions,
        flow_shifts=shifts,
    )


def clip_feed(
    config: ConvertConfig,
    source: ClipSource,
    pair: Pair,
    device: torch.device,
    shards: StepShards,
) -> ClipFeed:
    """What both models are asked about the clips of a source.

    Args:
        config: of the run.
        source: of the clips.
        pair: that is asked.
        device: that computes.
        shards: this process's clips of a step.
    """
    if isinstance(source, CachedClips):
        logger.info("converting on %d clips", len(source.cache.index.clips))
    levels = PipelineFolder(Path(config.pipeline)).levels(config.part)
    return ClipFeed(source, config, device, pair.num_tokens, levels, shards)

"""Tiny pipelines of diffusers in folders, caches by their encoders, and runs on both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.support.hunyuan_pipelines import hunyuan_video15
from tests.support.tiny_cache import cache_config, noise_video
from tests.support.tiny_pipelines import tiny_wan_pipeline
from tests.support.tiny_video_pipelines import (
    tiny_hunyuan_pipeline,
    tiny_image_pipeline,
    tiny_ltx_pipeline,
)

from freqformer.training.cache.making import make_cache
from freqformer.training.cache.settings import CacheConfig
from freqformer.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from freqformer.training.pipeline_config import PipelineConfig

SIZE = (128, 160)
FRAMES = 17
"""Of clips: 400 tokens of Wan's, of which half can be left out."""
CAPTIONS = ("a lighthouse in the storm", "a cat")


def make_pipeline_and_cache(
    folder: Path, kind: str = "wan", experts: int = 1, size: tuple[int, int] = SIZE
) -> Path:
    """A folder with `pipe`, `videos` and their `cache`."""
    makers: dict[str, Callable[[], Any]] = {
        "wan": lambda: tiny_wan_pipeline(experts),
        "ltx": tiny_ltx_pipeline,
        "hunyuan": tiny_hunyuan_pipeline,
        "hunyuan-1.5": hunyuan_15,
        "wan-2.1-i2v": lambda: tiny_image_pipeline(image_dim=12),
        "wan-2.2-i2v": tiny_image_pipeline,
    }
    pipe = makers[kind]()
    pipe.save_pretrained(folder / "pipe")
    (folder / "videos").mkdir()
    for place, caption in enumerate(CAPTIONS):
        path = noise_video(folder / "videos" / f"{place}.mp4", FRAMES, *size, seed=place)
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    make_cache(pipeline_cache(folder, sizes=(size,)))
    return folder


def hunyuan_15() -> Any:
    """HunyuanVideo 1.5, whose template goes on after the prompt."""
    pipe = hunyuan_video15()
    pipe.tokenizer.chat_template = "{{ 'a ' * 108 }}{{ messages[-1]['content'] }} a cat"
    return pipe


def pipeline_cache(folder: Path, **changes: Any) -> CacheConfig:
    """A cache of `videos` by the encoders of `pipe`, both in the folder."""
    encoders = {"vae": str(folder / "pipe"), "text_encoder": str(folder / "pipe")}
    return cache_config(folder, **{**encoders, "sizes": (SIZE,), "frames": (FRAMES,), **changes})


def lora_config(folder: Path, output: Path, **pipeline: Any) -> TrainConfig:
    """Three steps on the cache of a folder, through frequency attention at half the FLOPs.

    Args:
        folder: with `pipe` and `cache`.
        output: of the run.
        **pipeline: fields of the pipeline's section.
    """
    settings = {"rank": 4, "density": 0.5, "min_tokens": 1, **pipeline}
    return TrainConfig(
        str(output),
        pipeline=PipelineConfig(str(folder / "pipe"), **settings),
        data=DataConfig(cache=str(folder / "cache")),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
        run=RunConfig(max_steps=3, batch_size=1, device="cpu", progress=False),
    )


def add_lora(transformer: Any, run: Path, scale: float = 1.0) -> None:
    """Put W + scale * B A in place of W, by the averaged additions that a run of three steps has in
    its checkpoint."""
    state = load_file(run / "checkpoints" / "step-00000003" / "ema.safetensors")
    with torch.no_grad():
        for name, first in state.items():
            if ".lora_A." not in name:
                continue
            second = state[name.replace("lora_A", "lora_B")]
            layer = name.removeprefix("transformer.").partition(".lora_A")[0]
            transformer.get_parameter(f"{layer}.weight").add_(second @ first, alpha=scale)


def with_run(config: TrainConfig, **values: Any) -> TrainConfig:
    """The config with other fields of `run`."""
    return replace(config, run=replace(config.run, **values))

"""Tiny dense models of random weights, and conversions of them that take seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tests.support.tiny_cache import cache_config, make_videos
from tests.support.tiny_encoders import tiny_vae
from tests.support.tiny_pipelines import tiny_text_encoder, tiny_tokenizer, tiny_wan_transformer
from tests.support.tiny_transformers import LTX

from freqformer.config import FreqFormerConfig
from freqformer.conversion.config import (
    ConversionRunConfig,
    ConvertConfig,
    StagesConfig,
    WeightsConfig,
)
from freqformer.integrations.diffusers.converted.windows import WindowSettings
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.training.cache.making import make_cache
from freqformer.training.config import DataConfig, OptimizerConfig

TILE = (1, 2, 2)
WINDOWS = WindowSettings(0.4, TILE, 128)
SIZE = (2, 6, 8)
"""Of token grids."""


def wan() -> Any:
    """And what it is called with, for tokens of `SIZE`."""
    torch.manual_seed(0)
    model = tiny_wan_transformer(in_channels=4, out_channels=4)
    frames, height, width = SIZE
    given = {
        "hidden_states": torch.randn(1, 4, frames, 2 * height, 2 * width),
        "encoder_hidden_states": torch.randn(1, 7, 16),
    }
    return model, given


def ltx() -> Any:
    """As `wan`."""
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(**LTX).eval()
    frames, height, width = SIZE
    given = {
        "hidden_states": torch.randn(1, frames * height * width, 4),
        "encoder_hidden_states": torch.randn(1, 7, 16),
        "encoder_attention_mask": torch.ones(1, 7).bool(),
        "num_frames": frames,
        "height": height,
        "width": width,
    }
    return model, given


def hunyuan_video() -> Any:
    """As `wan`."""
    torch.manual_seed(0)
    model = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    ).eval()
    frames, height, width = SIZE
    given = {
        "hidden_states": torch.randn(1, 4, frames, 2 * height, 2 * width),
        "encoder_hidden_states": torch.randn(1, 7, 16),
        "encoder_attention_mask": (torch.arange(7) < 5)[None].long(),
        "pooled_projections": torch.randn(1, 8),
        "guidance": torch.full((1,), 6000.0),
    }
    return model, given


FAMILIES = {"wan": wan, "ltx": ltx, "hunyuan_video": hunyuan_video}


def velocity(model: Any, given: dict[str, Any], timestep: float = 500.0) -> torch.Tensor:
    """What the model makes of its inputs at a timestep."""
    return model(**given, timestep=torch.tensor([timestep]), return_dict=False)[0]


def make_wan_folder(folder: Path) -> Path:
    """A pipeline `wan` and the cache of four clips by its encoders, both in the folder."""
    make_videos(folder / "videos")
    model, _ = wan()
    WanPipeline(
        tokenizer=tiny_tokenizer(),  # type: ignore[arg-type]
        text_encoder=tiny_text_encoder(),
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        transformer=model,
    ).save_pretrained(folder / "wan")
    own = {"vae": str(folder / "wan"), "text_encoder": str(folder / "wan")}
    make_cache(cache_config(folder, sizes=((48, 64),), **own))
    return folder


def make_dense_folder(folder: Path) -> Path:
    """A pipeline `dense` of this package with random weights, of pixels."""
    torch.manual_seed(0)
    model = FreqFormerTransformer3DModel(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        patch_size=(1, 4, 4),
        frequency=FreqFormerConfig.dense(),
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    scheduler = FlowMatchEulerDiscreteScheduler()
    FreqFormerPipeline(model, scheduler).save_pretrained(folder / "dense")
    return folder / "dense"


def tiny_conversion(folder: Path, name: str = "wan", **changed: Any) -> ConvertConfig:
    """Four steps of each of the first two stages, of what `make_wan_folder` or `make_dense_folder`
    made."""
    data = (
        DataConfig(cache=str(folder / "cache"))
        if name == "wan"
        else DataConfig(num_frames=2, height=24, width=32)
    )
    config = ConvertConfig(
        pipeline=str(folder / name),
        output=str(folder / "out"),
        windows=WINDOWS,
        weights=WeightsConfig(rank=4),
        stages=StagesConfig(4, 4, falling=0.5, levels=2),
        data=data,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=1, weight_decay=0.0),
        run=ConversionRunConfig(precision="fp32", device="cpu", progress=False),
    )
    return replace(config, **changed)

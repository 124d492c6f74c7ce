"""A tiny MiniMax-H3 in the folders that the hub has, its reader of prompts included."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import MiniMaxH3Blocks
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
from tests.support.sound_pipelines import minimax_h3_parts
from tests.support.tiny_cache import cache_config
from tests.support.tiny_pipelines import TEXT_CHANNELS
from tokenizers import pre_tokenizers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from freqformer.media import Sound, write_video
from freqformer.training.cache.making import make_cache
from freqformer.training.cache.settings import CacheConfig

FPS = 24
FRAMES = 22
SIDE = 48
LATENTS = SIDE // 4
RATE = 160
"""Samples a second of the tiny VAE of sound, which makes one latent of 4."""
CAPTIONS = ("a lighthouse in the storm", "a cat")
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": TEXT_CHANNELS,
    "num_position_embeddings": 16,
    "patch_size": 4,
    "deepstack_visual_indexes": [],
}


class TextProcessor:
    """What text needs of Qwen3-VL's processor, which needs torchvision."""

    def create_mm_token_type_ids(self, token_ids: list[list[int]]) -> list[list[int]]:
        """As there, where no picture is."""
        return [[0] * len(ids) for ids in token_ids]


def statistics(channels: int) -> dict[str, list[float]]:
    """Of latents."""
    steps = [0.05 * place for place in range(channels)]
    return {"latents_mean": steps, "latents_std": [1 + step for step in steps]}


VIDEO = {
    "block_out_channels": (4, 4),
    "spatial_downsample_factors": (2, 2),
    "temporal_downsample_factors": (2, 2),
    **statistics(24),
}
"""The VAE of video, whose latents stand for 4 x 4 pixels."""


def tiny_qwen3_vl() -> Any:
    """With as many layers as MiniMax-H3 asks for."""
    language = {
        "vocab_size": 257,
        "hidden_size": TEXT_CHANNELS,
        "intermediate_size": 16,
        "num_hidden_layers": 51,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
    }
    torch.manual_seed(1)
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=language, vision_config=VISION)
    ).eval()


def save_minimax(folder: Path) -> Path:
    """The whole pipeline but for its processor."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pipe: Any = MiniMaxH3Blocks().init_pipeline()
    parts = minimax_h3_parts(VIDEO, {"sampling_rate": RATE, **statistics(32)})
    pipe.update_components(
        **parts,
        text_encoder=tiny_qwen3_vl(),
        tokenizer=Qwen2Tokenizer(
            vocab={letter: place for place, letter in enumerate(letters)}, merges=[]
        ),
    )
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder


def load_minimax(folder: Path) -> Any:
    """It, from its folder, as diffusers loads it."""
    pipe: Any = ModularPipeline.from_pretrained(str(folder), workflow="t2va")
    pipe.load_components(names=[name for name in pipe.component_names if name != "processor"])
    pipe.update_components(processor=TextProcessor())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def minimax_cache(folder: Path, **changes: Any) -> CacheConfig:
    """A cache of `videos` by the encoders of `pipe`, both in the folder."""
    usual = {
        "vae": str(folder / "pipe"),
        "text_encoder": str(folder / "pipe"),
        "sizes": ((SIDE, SIDE),),
        "frames": (FRAMES,),
        "fps": float(FPS),
    }
    return cache_config(folder, **{**usual, **changes})


def make_minimax(folder: Path) -> Path:
    """A folder with `pipe`, `videos` with sound, and their `cache`."""
    save_minimax(folder / "pipe")
    (folder / "videos").mkdir()
    generator = torch.Generator().manual_seed(0)
    for place, caption in enumerate(CAPTIONS):
        pixels = torch.rand(FRAMES, 4, 4, 3, generator=generator).mul(255).to(torch.uint8)
        frames = pixels.repeat_interleave(SIDE // 4, 1).repeat_interleave(SIDE // 4, 2)
        seconds = torch.arange(8000 * FRAMES // FPS) / 8000
        tone = torch.sin(2 * math.pi * (10 + 20 * place) * seconds)
        path = folder / "videos" / f"{place}.mp4"
        write_video(frames.contiguous(), path, FPS, sound=Sound(tone.repeat(2, 1), 8000))
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    make_cache(minimax_cache(folder))
    return folder

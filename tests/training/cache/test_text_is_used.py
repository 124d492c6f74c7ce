"""Captions decide what is generated: the whole chain on videos that only their captions tell
apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.tiny_encoders import save_encoders, tiny_vae
from tests.support.told_clips import (
    CAPTIONS,
    FPS,
    FRAMES,
    HEIGHT,
    WIDTH,
    scale_to_one,
    shown,
    told_latents,
    write_told_videos,
)

from freqformer import FreqFormerPipeline
from freqformer.training.cache.making import make_cache
from freqformer.training.cache.settings import CacheConfig
from freqformer.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from freqformer.training.loop import train

MODEL = {
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "absolute_positions": True,
    # A clip has a dozen tokens, one tile, in which bands are all alike.
    "frequency": {"preset": "dense"},
}
VIDEOS = 64


def test_the_measure_knows_real_clips() -> None:
    vae = tiny_vae().eval()
    scale_to_one(vae)
    latents = told_latents(vae, 72)
    for place in range(len(CAPTIONS)):
        assert shown(latents[place, 64:], latents[:, :64]) == [place] * 8


@pytest.mark.slow
def test_swapping_captions_swaps_what_is_seen(tmp_path: Path) -> None:
    vae = tiny_vae().eval()
    scale_to_one(vae)
    save_encoders(tmp_path / "encoders")
    vae.save_pretrained(tmp_path / "encoders" / "vae")
    write_told_videos(tmp_path / "videos", 16)
    make_cache(
        CacheConfig(
            videos=str(tmp_path / "videos"),
            vae=str(tmp_path / "encoders"),
            text_encoder=str(tmp_path / "encoders"),
            output=str(tmp_path / "cache"),
            sizes=((HEIGHT, WIDTH),),
            frames=(FRAMES,),
            fps=FPS,
            # The variance of a VAE of random weights is noise.
            latents="mean",
            device="cpu",
            progress=False,
        )
    )
    folder = train(
        TrainConfig(
            str(tmp_path / "run"),
            model=MODEL,
            data=DataConfig(cache=str(tmp_path / "cache")),
            optimizer=OptimizerConfig(learning_rate=2e-3, ema_decay=0.99),
            run=RunConfig(max_steps=700, batch_size=16, device="cpu", progress=False),
        )
    )
    pipeline = FreqFormerPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    known = told_latents(vae, 64)
    right = 0
    for place, caption in enumerate(CAPTIONS):
        # The same noise for all captions: nothing but the words differs.
        made = pipeline(
            FRAMES,
            HEIGHT,
            WIDTH,
            num_inference_steps=20,
            prompt=caption,
            guidance_scale=4.0,
            batch_size=VIDEOS // len(CAPTIONS),
            generator=torch.Generator().manual_seed(5),
            output_type="latent",
        )
        right += shown(made.frames, known).count(place)
    assert right >= 0.95 * VIDEOS

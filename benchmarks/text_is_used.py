"""Captions decide what is generated: accuracy of swapped captions on procedural videos, through the
whole chain of cache, training and generation, with encoders and a model small enough for a CPU.

    PYTHONPATH=src:. python -m benchmarks.text_is_used [--output FOLDER]

Four captions say a ball's colour and the way it flies; videos differ in nothing else but the ball's
height. All captions are given the same noise, and what a generated video shows is the caption of
the nearest known clip. Takes some five minutes of a CPU, and writes text_is_used.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

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

from benchmarks import record
from freqformer import FreqFormerPipeline
from freqformer.training.cache.making import make_cache
from freqformer.training.cache.settings import CacheConfig
from freqformer.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from freqformer.training.loop import train

MODEL: dict[str, Any] = {
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "absolute_positions": True,
    # A clip has a dozen tokens, one tile, in which bands are all alike.
    "frequency": {"preset": "dense"},
}
STEPS = 700
VIDEOS = 64
GUIDANCE = 4.0
EACH = 16
"""Videos of every caption to train on."""
KNOWN = 64
"""Clips of every caption that generated videos are compared with."""


def measure(folder: Path, device: str = "cpu") -> dict[str, Any]:
    """How many of the generated videos show what their caption says, JSON-able.

    Args:
        folder: for videos, cache and run.
        device: that trains and generates.
    """
    vae = tiny_vae().eval()
    scale_to_one(vae)
    trained = _trained(folder, vae, device)
    pipeline = FreqFormerPipeline.from_pretrained(trained).to(device)
    pipeline.set_progress_bar_config(disable=True)
    known = told_latents(vae, KNOWN)
    seen = {}
    for caption in CAPTIONS:
        # The same noise for all captions: nothing but the words differs.
        made = pipeline(
            FRAMES,
            HEIGHT,
            WIDTH,
            num_inference_steps=20,
            prompt=caption,
            guidance_scale=GUIDANCE,
            batch_size=VIDEOS // len(CAPTIONS),
            generator=torch.Generator().manual_seed(5),
            output_type="latent",
        )
        found = shown(torch.as_tensor(made.frames).cpu(), known)
        seen[caption] = [found.count(place) for place in range(len(CAPTIONS))]
    right = sum(seen[caption][place] for place, caption in enumerate(CAPTIONS))
    return {
        "model": MODEL,
        "steps": STEPS,
        "guidance_scale": GUIDANCE,
        "trained_on": EACH * len(CAPTIONS),
        "videos": VIDEOS,
        "captions": CAPTIONS,
        "seen": seen,
        "accuracy": right / VIDEOS,
    }


def _trained(folder: Path, vae: Any, device: str) -> Path:
    """The pipeline's folder of a model that learned from a cache of told videos."""
    encoders = folder / "encoders"
    save_encoders(encoders)
    vae.save_pretrained(encoders / "vae")
    write_told_videos(folder / "videos", EACH)
    make_cache(
        CacheConfig(
            videos=str(folder / "videos"),
            vae=str(encoders),
            text_encoder=str(encoders),
            output=str(folder / "cache"),
            sizes=((HEIGHT, WIDTH),),
            frames=(FRAMES,),
            fps=FPS,
            # The variance of a VAE of random weights is noise.
            latents="mean",
            device=device,
            progress=False,
        )
    )
    return train(
        TrainConfig(
            str(folder / "run"),
            model=MODEL,
            data=DataConfig(cache=str(folder / "cache")),
            optimizer=OptimizerConfig(learning_rate=2e-3, ema_decay=0.99),
            run=RunConfig(
                max_steps=STEPS,
                batch_size=16,
                device="cpu" if device == "cpu" else "auto",
                progress=False,
            ),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=record.RESULTS)
    parser.add_argument("--commit", help="of this checkout, where git isn't there to ask")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder))
    print(f"{results['accuracy']:.1%} of {VIDEOS} videos show what their caption says")
    print(record.save("text_is_used", results, given.output, given.commit))


if __name__ == "__main__":
    main()

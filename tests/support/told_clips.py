"""Videos whose captions decide what is in them, and a measure of what a generated one shows."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer.media import to_unit, write_video
from freqformer.models.latents import encode

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220)}
WAYS = {"left": -1, "right": 1}
CAPTIONS = [f"a {colour} ball flies {way}" for colour, way in product(COLOURS, WAYS)]
FRAMES, HEIGHT, WIDTH = (5, 32, 48)
FPS = 8


def told_clip(caption: str, seed: int) -> Tensor:
    """uint8 (F, H, W, 3): a ball of the caption's colour crosses a grey field the caption's way, at
    a height that the seed draws."""
    _, colour, _, _, way = caption.split()
    row = 12 + 8 * float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    frames = torch.full((FRAMES, HEIGHT, WIDTH, 3), 120, dtype=torch.uint8)
    for number in range(FRAMES):
        column = WIDTH / 2 + WAYS[way] * 14 * (2 * number / (FRAMES - 1) - 1)
        inside = (y - row) ** 2 + (x - column) ** 2 < 100
        frames[number][inside] = torch.tensor(COLOURS[colour], dtype=torch.uint8)
    return frames


def write_told_videos(folder: Path, each: int) -> None:
    """So many videos of every caption, with the captions beside them."""
    for place, caption in enumerate(CAPTIONS):
        for number in range(each):
            path = folder / f"{place}-{number:03d}.mp4"
            write_video(told_clip(caption, 1000 * place + number), path, FPS)
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def told_latents(vae: Any, each: int) -> Tensor:
    """Means of latents of other clips, (captions, each, C, F, H, W)."""
    return torch.stack(
        [
            torch.stack(
                [
                    encode(to_unit(told_clip(caption, 10_000 + number))[None], vae).mean[0]
                    for number in range(each)
                ]
            )
            for caption in CAPTIONS
        ]
    )


def scale_to_one(vae: Any) -> None:
    """Give a VAE of random weights the statistics that its latents of such clips have."""
    channels = vae.config["z_dim"]
    vae.register_to_config(latents_mean=[0.0] * channels, latents_std=[1.0] * channels)
    latents = told_latents(vae, 4).transpose(0, 2).flatten(1)
    vae.register_to_config(
        latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist()
    )


def shown(latents: Tensor, known: Tensor) -> list[int]:
    """Which caption each of these latents (B, C, F, H, W) shows: that of the nearest known clip."""
    distances = torch.cdist(latents.flatten(1), known.flatten(2).flatten(0, 1))
    return (distances.argmin(1) // known.shape[1]).tolist()

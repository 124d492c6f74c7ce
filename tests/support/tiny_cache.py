"""A folder of tiny captioned videos, and its cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from freqformer.media import write_video
from freqformer.training.cache.settings import CacheConfig

CAPTIONS = {
    "one.mp4": "a red ball flies left",
    "two.mp4": "a blue ball",
    "inner/tall.mp4": "a red ball",
    "still.png": "a ball",
}
FPS = 8


def noise_video(path: Path, frames: int, height: int, width: int, seed: int = 0) -> Path:
    """Smooth colours that move."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(frames, 3, 3, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    write_video((255 * fine).to(torch.uint8).permute(0, 2, 3, 1).contiguous(), path, FPS)
    return path


def make_videos(folder: Path) -> Path:
    """Three videos and a picture with captions beside them: two wide videos of 11 and 5 frames, a
    tall one of 5, a wide picture."""
    (folder / "inner").mkdir(parents=True, exist_ok=True)
    noise_video(folder / "one.mp4", 11, 32, 48, seed=1)
    noise_video(folder / "two.mp4", 5, 32, 48, seed=2)
    noise_video(folder / "inner" / "tall.mp4", 5, 48, 32, seed=3)
    pixels = torch.linspace(0, 255, 40 * 60 * 3).to(torch.uint8).view(40, 60, 3)
    Image.fromarray(pixels.numpy()).save(folder / "still.png")
    for name, caption in CAPTIONS.items():
        (folder / name).with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    return folder


def cache_config(folder: Path, **changes: Any) -> CacheConfig:
    """A cache of `videos` by `encoders`, both in the folder: 5 frames of 32 x 48, and aspects."""
    settings: dict[str, Any] = {
        "videos": str(folder / "videos"),
        "vae": str(folder / "encoders"),
        "text_encoder": str(folder / "encoders"),
        "output": str(folder / "cache"),
        "sizes": ((32, 48),),
        "frames": (5,),
        "fps": float(FPS),
        "device": "cpu",
        "progress": False,
    }
    return CacheConfig(**{**settings, **changes})

"""`freqformer cache` beside its VAE alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer.media import from_unit, to_unit, write_video
from freqformer.models.latents import encode
from freqformer.training.cache.making import DTYPES, make_cache
from freqformer.training.cache.settings import CacheConfig
from freqformer.training.cache.vae import VideoVae
from freqformer.training.synthetic import SyntheticClips

FPS = 16
PRECISION = "bf16"
WARMUP = 2


@dataclass(frozen=True)
class CacheAmount:
    """What is coded."""

    videos: int = 24
    frames: int = 81
    height: int = 480
    width: int = 832
    drawn: int = 4
    """Videos that are drawn; the others are copies of them under other names."""
    vae: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments; none make it as large as Wan's own."""


def cache_row(work: Path, amount: CacheAmount, device: torch.device) -> dict[str, Any]:
    """Clips a second of the whole command, of its clips one after another, and of the VAE alone.

    Args:
        work: folder for videos, VAE and cache.
        amount: what is coded.
        device: that codes.
    """
    _write_videos(work / "videos", amount)
    _write_vae(work / "vae", amount)
    config = CacheConfig(
        videos=str(work / "videos"),
        vae=str(work / "vae"),
        output=str(work / "cache"),
        sizes=((amount.height, amount.width),),
        frames=(amount.frames,),
        fps=float(FPS),
        precision=PRECISION,
        device=str(device),
        progress=False,
    )
    alone = _seconds_of_vae(work / "vae", amount, device)
    with _noted_clips() as ends:
        began = time.perf_counter()
        index = make_cache(config)
        whole = time.perf_counter() - began
    if len(index.clips) != amount.videos:
        raise SystemExit(f"{len(index.clips)} of {amount.videos} clips were cached: no rate of all")
    # Loading, planning and the first clip's kernels come before the first end.
    steady = (ends[-1] - ends[0]) / (len(ends) - 1)
    return {
        "clips": amount.videos,
        "frames_height_width": [amount.frames, amount.height, amount.width],
        "precision": PRECISION,
        "command_clips_per_s": amount.videos / whole,
        "steady_clips_per_s": 1 / steady,
        "vae_clips_per_s": 1 / alone,
        "steady_of_vae": alone / steady,
        "seconds_between_clips": [b - a for a, b in pairwise(ends)],
    }


def _write_videos(folder: Path, amount: CacheAmount) -> None:
    """Procedural clips as MP4 files."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = SyntheticClips(0, num_frames=amount.frames, height=amount.height, width=amount.width)
    for number in range(amount.videos):
        path = folder / f"{number:03d}.mp4"
        if number < amount.drawn:
            write_video(from_unit(clips.load(number).clip), path, FPS)
        else:
            path.write_bytes((folder / f"{number % amount.drawn:03d}.mp4").read_bytes())


def _write_vae(folder: Path, amount: CacheAmount) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    torch.manual_seed(0)
    AutoencoderKLWan(**amount.vae).save_pretrained(folder)


def _seconds_of_vae(folder: Path, amount: CacheAmount, device: torch.device) -> float:
    """Median time of one clip that is on the device already, as the command codes it."""
    vae = VideoVae.load(folder, DTYPES[PRECISION], tiling=False).vae.to(device)
    clips = SyntheticClips(1, num_frames=amount.frames, height=amount.height, width=amount.width)
    pixels = from_unit(clips.load(0).clip).to(device)
    took = []
    for _ in range(WARMUP + 5):
        began = time.perf_counter()
        _read(encode(to_unit(pixels)[None], vae).mean)
        took.append(time.perf_counter() - began)
    return sorted(took[WARMUP:])[2]


def _read(latents: Tensor) -> None:
    """Wait for latents as the command does, which keeps them."""
    latents.cpu()


@contextmanager
def _noted_clips() -> Iterator[list[float]]:
    """The times at which clips have been coded inside the block."""
    ends: list[float] = []
    own = VideoVae.code

    def code(self: VideoVae, *args: Any) -> Any:
        made = own(self, *args)
        ends.append(time.perf_counter())
        return made

    VideoVae.code = code  # type: ignore[method-assign]
    try:
        yield ends
    finally:
        VideoVae.code = own  # type: ignore[method-assign]

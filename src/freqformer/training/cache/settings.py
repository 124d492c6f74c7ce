"""What a cache is made of, as a frozen record that refuses bad values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from freqformer._validate import check_choice, check_flag, check_number, check_whole, shown

Latents = Literal["distribution", "sample", "mean"]
CachePrecision = Literal["fp32", "bf16"]

MOST_FRAMES = 100_000
MOST_SIDE = 16_384
MOST_TOKENS = 8_192
MOST_MIB = 2**20
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class CacheConfig:
    """What to cache.

    Args:
        videos: a video or picture file, or a folder of them, searched in depth.
        vae: folder of a diffusers video VAE, or of a pipeline that has one.
        output: folder of the cache.
        text_encoder: folder of a transformers text encoder with its tokenizer, or of a pipeline
            that has both; None makes a cache without text.
        sizes: (height, width) in pixels; each is the area of a row of buckets of several aspects.
        frames: frames that a clip may have. A video is cut into clips of the most that fit into it.
        fps: frames per second of a clip.
        multiple: pixels that the sides of a bucket are multiples of; None is twice what the VAE
            makes one latent of, for patches of two.
        latents: `distribution` keeps mean and variance, and training draws a sample each time;
            `sample` keeps one sample, `mean` the mean.
        text_tokens: tokens of a caption at most.
        precision: that the VAE and the encoder compute in.
        tiling: whether the VAE takes large videos in pieces: less memory, other bits.
        shard_mib: size of a file of latents, in MiB, and what a kill may cost.
        skip_unmatched: whether videos without caption, and captions without video, are left out
            and named; otherwise they are refused.
        seed: of samples.
        device: cpu, cuda or cuda:1; None takes a GPU where there is one.
        progress: whether to draw a progress bar.

    Raises:
        ValueError: for a value out of range, naming the field.
    """

    videos: str
    vae: str
    output: str
    text_encoder: str | None = None
    sizes: tuple[tuple[int, int], ...] = ((480, 832),)
    frames: tuple[int, ...] = (81,)
    fps: float = 16.0
    multiple: int | None = None
    latents: Latents = "distribution"
    text_tokens: int = 512
    precision: CachePrecision = "fp32"
    tiling: bool = False
    shard_mib: float = 256.0
    skip_unmatched: bool = False
    seed: int = 0
    device: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("videos", "vae", "output"):
            _check_path(name, getattr(self, name))
        if self.text_encoder is not None:
            _check_path("text_encoder", self.text_encoder)
        if not self.sizes or not self.frames:
            raise ValueError(
                f"sizes is {shown(self.sizes)} and frames {shown(self.frames)}; one of each at"
                " least is allowed"
            )
        for height, width in self.sizes:
            check_whole("sizes", height, 1, most=MOST_SIDE)
            check_whole("sizes", width, 1, most=MOST_SIDE)
        for count in self.frames:
            check_whole("frames", count, 1, most=MOST_FRAMES)
        check_number("fps", self.fps, 1e-3, 1e3)
        if self.multiple is not None:
            check_whole("multiple", self.multiple, 1, most=MOST_SIDE)
        check_choice("latents", self.latents, get_args(Latents))
        check_whole("text_tokens", self.text_tokens, 1, most=MOST_TOKENS)
        check_choice("precision", self.precision, get_args(CachePrecision))
        check_number("shard_mib", self.shard_mib, 1e-3, MOST_MIB)
        for name in ("tiling", "skip_unmatched", "progress"):
            check_flag(name, getattr(self, name))
        check_whole("seed", self.seed, 0, most=MOST_SEED)

    def recipe(self) -> dict[str, Any]:
        """The fields on which the content of a cache depends, as JSON holds them."""
        return {
            "sizes": sorted([height, width] for height, width in self.sizes),
            "frames": sorted(set(self.frames)),
            "fps": float(self.fps),
            "multiple": self.multiple,
            "latents": self.latents,
            "text_tokens": self.text_tokens,
            "precision": self.precision,
            "tiling": self.tiling,
            "seed": self.seed,
            "shard_mib": float(self.shard_mib),
        }


def _check_path(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {shown(value)}; a path, as text, is allowed")

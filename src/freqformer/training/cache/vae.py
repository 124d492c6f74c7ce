"""The VAE of a folder, and the latents of a clip."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer._files import read_json
from freqformer._optional import needs
from freqformer.models.chunked import Chunks, chunks_of
from freqformer.models.latents import compression_ratios, encode
from freqformer.models.loading import align_parameters
from freqformer.models.saved import check_vae_sizes, check_vae_weights
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.settings import Latents

VAE_FOLDER = "vae"
STORED = torch.float16
"""Of latents, which are scaled to about 1: they keep a part in 2,000."""
MEAN, LOGVAR, SAMPLE = "mean", "logvar", "sample"
"""Names of a clip's tensors in a shard, after its place in the shard and a dot."""
_REMEDY = "give the folder of a video VAE of diffusers, like AutoencoderKLWan, or of its pipeline"


class LatentsError(ValueError):
    """The latents of one clip are of no use."""


def find_vae(folder: Path) -> Path:
    """The VAE's own folder: the one given, or the `vae` of a pipeline.

    Raises:
        CacheError: for a folder without either.
    """
    for place in (folder / VAE_FOLDER, folder):
        if (place / "config.json").is_file():
            return place
    what = "holds no VAE" if folder.is_dir() else "does not exist"
    raise CacheError(f"vae is {folder}, which {what}; {_REMEDY}")


@dataclass(frozen=True)
class VideoVae:
    """A VAE that codes videos.

    Args:
        vae: of diffusers.
    """

    vae: Any

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, *, tiling: bool) -> VideoVae:
        """The VAE of a folder, on the CPU; nothing in the folder is run.

        Args:
            folder: with its config and safetensors.
            dtype: to compute in.
            tiling: whether it takes large videos in pieces.

        Raises:
            ValueError: for a VAE of another kind, and files that are missing or damaged.
        """
        with needs("train"):
            import diffusers

        path = folder / "config.json"
        name: Any = read_json(path, remedy=_REMEDY, error=CacheError).get("_class_name")
        kind = getattr(diffusers, name, None) if _is_named_so(name) else None
        if kind is None:
            raise CacheError(
                f"{path} has _class_name={name!r}; a video VAE of diffusers is allowed: {_REMEDY}"
            )
        check_vae_sizes(folder)
        try:
            vae = kind.from_pretrained(str(folder), use_safetensors=True, dtype=dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # diffusers raises many types for damage
            text = str(error) if isinstance(error, OSError | ValueError) else repr(error)
            raise CacheError(f"{folder} can't be loaded ({text}); {_REMEDY}") from error
        check_vae_weights(folder, vae)
        compression_ratios(vae)
        align_parameters(vae)
        if tiling:
            _enable_tiling(vae)
        return cls(vae.eval().requires_grad_(False))

    @property
    def device(self) -> torch.device:
        """That computes."""
        return next(self.vae.parameters()).device

    @property
    def compression(self) -> tuple[int, int]:
        """Frames and pixels of a side that become one latent; the first frame is coded alone."""
        return compression_ratios(self.vae)

    @property
    def chunks(self) -> Chunks | None:
        """Of a VAE that codes videos in chunks of frames."""
        return chunks_of(self.vae)

    @property
    def channels(self) -> int:
        """Of latents."""
        config = self.vae.config
        return int(config.get("z_dim") or config.get("latent_channels"))

    def code(self, clip: Tensor, kept: Latents, generator: torch.Generator) -> dict[str, Tensor]:
        """What a shard keeps of a clip, each (C, F, H, W) float16 on the CPU, by name.

        Args:
            clip: (3, F, H, W) in [-1, 1].
            kept: as `CacheConfig.latents`.
            generator: of a sample.

        Raises:
            LatentsError: where latents are not finite.
        """
        posterior = encode(clip[None].to(self.device), self.vae)
        mean = posterior.mean[0].cpu()
        logvar = posterior.logvar[0].cpu()
        if kept == "mean":
            made = {MEAN: mean}
        elif kept == "sample":
            made = {SAMPLE: sampled(mean, logvar, generator)}
        else:
            made = {MEAN: mean, LOGVAR: logvar}
        return {name: stored(name, latents) for name, latents in made.items()}


def stored(name: str, latents: Tensor) -> Tensor:
    """As a shard keeps latents: float16, on the CPU.

    Raises:
        LatentsError: where they are not finite.
    """
    made = latents.to("cpu", STORED).contiguous()
    if not bool(made.isfinite().all()):
        raise LatentsError(
            f"its latents' {name} is not finite: compute in fp32 (--precision), or remove the file"
        )
    return made


def sampled(mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
    """A sample of latents with this mean and log-variance, float32."""
    noise = torch.randn(mean.shape, generator=generator)
    return mean.float() + (0.5 * logvar.float()).exp() * noise


def _enable_tiling(vae: Any) -> None:
    try:
        vae.enable_tiling()
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise CacheError(
            f"tiling is True, and vae, a {type(vae).__name__}, can't be tiled; leave it out"
        ) from error


def _is_named_so(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"AutoencoderKL\w+", name, re.ASCII) is not None

"""The sound of clips, coded as MiniMax-H3's transformer sees it.

Shape legend: T latents of a channel of sound, A their channels, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer._files import read_json
from freqformer._optional import needs
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.fingerprints import CONFIG, fingerprint
from freqformer.training.cache.index import SOUND_ENCODER, SOUND_PIPELINE
from freqformer.training.cache.pipeline_index import class_of

SOUND = "sound"
SOUND_NOISE = "sound_noise"
"""Names of a clip's tensors in a shard, and of `VelocityModel`'s arguments; noise is drawn anew
each time."""
FPS = 24
"""Of all videos of its pipeline."""
LATENTS_PER_SECOND = 40
_REMEDY = "give the folder of a whole pipeline, as save_pretrained wrote it"


def sound_latents(num_frames: int) -> int:
    """Latents of each channel that go with a video, T."""
    return round(num_frames / FPS * LATENTS_PER_SECOND)


@dataclass(frozen=True)
class SoundSource:
    """A folder of the pipeline.

    Args:
        folder: with `audio_vae/`.
    """

    folder: Path

    @property
    def names(self) -> tuple[str, ...]:
        """Of what a shard keeps of a clip."""
        return (SOUND,)

    @property
    def rate(self) -> int:
        """Samples a second that the VAE codes."""
        config = read_json(self._place / CONFIG, remedy=_REMEDY, error=CacheError)
        return int(config.get("sampling_rate", 32_000))

    def samples(self, num_frames: int) -> int:
        """Of each channel that a clip has, S."""
        return sound_latents(num_frames) * self.rate // LATENTS_PER_SECOND

    def fingerprint(self) -> str:
        """A text that differs with the VAE of sound."""
        return fingerprint([self._place])

    def check_fps(self, fps: float) -> None:
        """Refuse clips of another rate than the pipeline's.

        Raises:
            CacheError: for one.
        """
        if fps != FPS:
            raise CacheError(
                f"fps is {fps:g}, and MiniMax-H3 makes videos of {FPS} frames a second; {FPS} is"
                f" allowed: give --fps {FPS}"
            )

    def load(self, device: torch.device) -> Sounds:
        """What codes sound, on a device; nothing in the folder is run.

        Raises:
            CacheError: for a VAE that is missing or damaged.
        """
        with needs("train"):
            from diffusers.models.autoencoders.autoencoder_kl_minimax_h3_audio import (
                AutoencoderKLMiniMaxH3Audio,
            )

        try:
            vae: Any = AutoencoderKLMiniMaxH3Audio.from_pretrained(
                str(self._place), use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise CacheError(
                f"vae is {self.folder}, whose {SOUND_ENCODER} can't be loaded ({error}); {_REMEDY}"
            ) from error
        return Sounds(vae.eval().requires_grad_(False).to(device))

    @property
    def _place(self) -> Path:
        return self.folder / SOUND_ENCODER


@dataclass(frozen=True)
class Sounds:
    """Codes sound.

    Args:
        vae: of diffusers, of sound.
    """

    vae: Any

    @torch.no_grad()
    def code(self, sound: Tensor) -> dict[str, Tensor]:
        """What the transformer is told of a clip's sound, by name: (2 T, A), the latents of one
        channel after those of the other.

        Args:
            sound: (2, S), in [-1, 1].
        """
        device = next(self.vae.parameters()).device
        mean = self.vae.encode(sound.to(device)[:, None]).latent_dist.mode().float()
        rows = mean.transpose(1, 2)
        config = self.vae.config
        shift, scale = (rows.new_tensor(config[f"latents_{name}"]) for name in ("mean", "std"))
        return {SOUND: ((rows - shift) / scale).flatten(0, 1)}


def find_sounds(folder: Path) -> SoundSource | None:
    """The pipeline of a folder whose transformer makes sound too; None where it is another, or a
    VAE alone.

    Raises:
        CacheError: where its VAE of sound is missing.
    """
    if class_of(folder) != SOUND_PIPELINE:
        return None
    if not (folder / SOUND_ENCODER / CONFIG).is_file():
        raise CacheError(f"vae is {folder}, a {SOUND_PIPELINE} without {SOUND_ENCODER}; {_REMEDY}")
    return SoundSource(folder)

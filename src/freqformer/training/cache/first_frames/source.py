"""The image-to-video pipeline of a folder, and what it tells of clips' first frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer._optional import needs
from freqformer.media import from_unit
from freqformer.training.cache.errors import CacheError
from freqformer.training.cache.fingerprints import fingerprint
from freqformer.training.cache.first_frames.families import CONDITION, FIRST_FRAMES, IMAGE_EMBEDS
from freqformer.training.cache.pipeline_index import class_of, read_index

ENCODER = "image_encoder"
PROCESSOR = "image_processor"
LAYER = -2
"""Whose output is what a transformer is told of an image."""
_REMEDY = "give the folder of a whole pipeline, as save_pretrained wrote it"


@dataclass(frozen=True)
class FirstFrameSource:
    """A folder of a pipeline of diffusers in `FIRST_FRAMES`."""

    folder: Path
    pipeline: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of what it tells."""
        return (CONDITION, IMAGE_EMBEDS) if self._has_encoder else (CONDITION,)

    def channels(self, latents: int) -> int:
        """Of the condition, by those of latents."""
        return FIRST_FRAMES[self.pipeline].channels(latents)

    def fingerprint(self) -> str | None:
        """A text that differs with its image encoder; None where it has none."""
        if not self._has_encoder:
            return None
        return fingerprint([self.folder / ENCODER, self.folder / PROCESSOR])

    def load(self, dtype: torch.dtype, device: torch.device) -> FirstFrames:
        """What codes first frames, on a device; nothing in the folder is run.

        Raises:
            CacheError: for an image encoder that is missing, damaged or of another kind.
        """
        if not self._has_encoder:
            return FirstFrames(self.pipeline)
        with needs("text"):
            from transformers import CLIPImageProcessor, CLIPVisionModel

        try:
            encoder: Any = CLIPVisionModel.from_pretrained(
                str(self.folder / ENCODER), dtype=dtype, use_safetensors=True, local_files_only=True
            )
            processor = CLIPImageProcessor.from_pretrained(
                str(self.folder / PROCESSOR), local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise CacheError(
                f"vae is {self.folder}, whose {ENCODER} can't be loaded ({error}); {_REMEDY}"
            ) from error
        return FirstFrames(
            self.pipeline, encoder.eval().requires_grad_(False).to(device), processor
        )

    @property
    def _has_encoder(self) -> bool:
        return (self.folder / ENCODER / "config.json").is_file()


@dataclass(frozen=True)
class FirstFrames:
    """Codes the first frames of clips.

    Args:
        pipeline: the class in whose way.
        encoder, processor: of images, by transformers; None where the pipeline has none.
    """

    pipeline: str
    encoder: Any = None
    processor: Any = None

    @torch.no_grad()
    def code(self, clip: Tensor, vae: Any) -> dict[str, Tensor]:
        """What the transformer is told of a clip's first frame, by name.

        Args:
            clip: (3, F, H, W) in [-1, 1], on the VAE's device.
            vae: of diffusers.
        """
        made = {CONDITION: FIRST_FRAMES[self.pipeline].condition(clip, vae)}
        if self.encoder is not None:
            image = from_unit(clip[:, :1])[0].cpu().numpy()
            given = self.processor(images=image, return_tensors="pt")["pixel_values"]
            given = given.to(self.encoder.device, self.encoder.dtype)
            states = self.encoder(pixel_values=given, output_hidden_states=True).hidden_states
            made[IMAGE_EMBEDS] = states[LAYER][0]
        return made


def find_first_frames(folder: Path) -> FirstFrameSource | None:
    """The image-to-video pipeline of a folder whose transformer is told a first frame beside the
    latents; None where it is another, or a VAE alone."""
    name = class_of(folder)
    if name not in FIRST_FRAMES or not FIRST_FRAMES[name].takes(read_index(folder)):
        return None
    return FirstFrameSource(folder, name)

"""What a transformer is asked for its velocity with, and what a family makes of it.

Shape legend: B batch, C channels, F frames, H height, W width of latents, L text tokens, E their
channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from freqformer._validate import check_number, check_whole


@dataclass(frozen=True)
class VelocitySettings:
    """What the arguments of a transformer depend on besides the call's tensors.

    Args:
        fps: frames per second of the videos.
        compression: frames, and pixels of a side, that a latent stands for.
        text_length: tokens that texts are padded to, for families that read padding; None takes as
            many as the family's pipeline does.
        expand_timesteps: of the pipeline's config: whether every token has a timestep of its own,
            so that a first frame can be given without noise (Wan 2.2 TI2V).
        guidance_scale: that a transformer which learned guidance by distillation is told.
        conditions: names of what a cache has of every clip beside latents and text.
        flow_shifts: of the sampler's noise levels of video and of sound, in a pipeline that makes
            both (MiniMax-H3).

    Raises:
        ValueError: for a value out of range, naming it.
    """

    fps: float = 16.0
    compression: tuple[int, int] = (4, 8)
    text_length: int | None = None
    expand_timesteps: bool = False
    guidance_scale: float = 1.0
    conditions: tuple[str, ...] = ()
    flow_shifts: tuple[float, float] = (12.0, 3.0)

    def __post_init__(self) -> None:
        check_number("fps", self.fps, 1e-3, 1e3)
        for factor in self.compression:
            check_whole("compression", factor, 1)
        if self.text_length is not None:
            check_whole("text_length", self.text_length, 1)
        check_number("guidance_scale", self.guidance_scale, 0, 1e3)
        for shift in self.flow_shifts:
            check_number("flow_shifts", shift, 1e-3, 1e3)


TIMESTEP_SCALE = 1000
"""Timesteps of a call are so many times the noise level."""
CONDITIONS = (
    "condition",
    "image_embeds",
    "pooled_embeds",
    "glyph_embeds",
    "glyph_mask",
    "sound",
    "sound_noise",
)
"""Names of what only some families are told."""


@dataclass(frozen=True)
class VelocityCall:
    """The tensors of one call, on one device."""

    latents: Tensor
    """(B, C, F, H, W) at a noise level t: (1 - t) clip + t noise."""
    timestep: Tensor
    """(B,) float32, 1000 t."""
    prompt_embeds: Tensor
    """(B, L, E)."""
    prompt_attention_mask: Tensor | None = None
    """(B, L) bool, true where a text token may be seen; None shows all."""
    keeps_first: Tensor | None = None
    """(B,) bool, true where the first frame of the latents is without noise."""
    condition: Tensor | None = None
    """(B, C', F, H, W), the channels that an image-to-video pipeline puts behind the latents."""
    image_embeds: Tensor | None = None
    """(B, L', E'), of the first frame by an image encoder."""
    pooled_embeds: Tensor | None = None
    """(B, P), of the whole text by a second encoder."""
    glyph_embeds: Tensor | None = None
    """(B, G, D), of what the text has in quotation marks by a second encoder."""
    glyph_mask: Tensor | None = None
    """(B, G), 1 where there is some of it and 0 where not."""
    sound: Tensor | None = None
    """(B, 2 T, A), the clip's own, the latents of one channel after those of the other."""
    sound_noise: Tensor | None = None
    """Standard normal, shaped like the sound."""

    def to(self, dtype: torch.dtype) -> VelocityCall:
        """With what the transformer takes in its own dtype in this one; timesteps stay."""
        given = {name: getattr(self, name) for name in ("latents", "prompt_embeds", *CONDITIONS)}
        return replace(self, **{name: x.to(dtype) for name, x in given.items() if x is not None})

    def embeds_padded_to(self, length: int) -> Tensor:
        """The text (B, length, E), zero behind its tokens.

        Raises:
            ValueError: for a longer text.
        """
        embeds = self.prompt_embeds
        missing = length - embeds.shape[1]
        if missing < 0:
            raise ValueError(
                f"prompt_embeds has {embeds.shape[1]} tokens, and this transformer's pipeline gives"
                f" it {length}; at most so many are allowed: make the cache with --text-tokens"
                f" {length}, or set text_length"
            )
        if self.prompt_attention_mask is not None:
            embeds = embeds * self.prompt_attention_mask[..., None].to(embeds)
        return torch.nn.functional.pad(embeds, (0, 0, 0, missing))

    def refuse_images(self, name: str) -> None:
        """Raise ValueError where the call has an image that this transformer can't take."""
        self._refuse(name, ("condition", "image_embeds"), "train an image-to-video model")

    def refuse_pooled(self, name: str) -> None:
        """Raise ValueError where the call has pooled text, which this transformer can't take."""
        self._refuse(name, ("pooled_embeds",), "make the cache by this pipeline's text encoder")

    def refuse_glyphs(self, name: str) -> None:
        """Raise ValueError where the call has text in quotation marks of its own."""
        fields = ("glyph_embeds", "glyph_mask")
        self._refuse(name, fields, "make the cache by this pipeline's text encoder")

    def refuse_sound(self, name: str) -> None:
        """Raise ValueError where the call has sound, which this transformer can't take."""
        self._refuse(name, ("sound", "sound_noise"), "make the cache by this pipeline's VAE")

    def _refuse(self, name: str, fields: tuple[str, ...], remedy: str) -> None:
        if found := [what for what in fields if getattr(self, what) is not None]:
            raise ValueError(
                f"{' and '.join(found)} is given, which a {name} doesn't take; None is allowed:"
                f" leave it out, or {remedy}"
            )


@dataclass(frozen=True)
class VelocityFamily:
    """How one kind of transformer is asked."""

    velocity: Callable[[Any, VelocityCall, VelocitySettings], Tensor]
    """(transformer, call, settings) -> (B, C, F, H, W): noise - clip, in its own dtype."""
    unsupported: Callable[[Any, VelocitySettings], str | None] = lambda _model, _settings: None
    """Why a transformer of this kind can't be trained from latents and one text, with the remedy;
    None where it can."""
    latent_channels: Callable[[Any], int] = lambda transformer: transformer.config.in_channels
    """C."""
    text_channels: Callable[[Any], int] = lambda transformer: transformer.config.text_dim
    """E."""
    patch_size: Callable[[Any], tuple[int, int, int]] = lambda transformer: tuple(
        transformer.config.patch_size
    )
    """Frames, rows and columns of latents that a token stands for."""
    takes_first_frame: Callable[[VelocitySettings], bool] = lambda _settings: False
    """Whether a first frame may be without noise."""
    takes_glyphs: bool = False
    """Whether it is told the text in quotation marks once more."""
    takes_sound: bool = False
    """Whether it is told the sound of the video; each of its samples is then a call of its own."""
    keeps_precision: bool = False
    """Whether it takes latents in float32 whatever its own dtype is."""

"""A transformer of diffusers behind the arguments that training's objective gives a model.

Shape legend: B batch, C channels, F frames, H height, W width of latents, L text tokens, E their
channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from freqformer.integrations.diffusers.ulysses import class_name
from freqformer.integrations.diffusers.velocity.call import (
    CONDITIONS,
    VelocityCall,
    VelocitySettings,
)
from freqformer.integrations.diffusers.velocity.families import velocity_family_of


class VelocityModel(nn.Module):
    """A transformer that takes latents and text, and gives the velocity noise - clip.

    Its gradients, hooks, adapters and processors work as without: the transformer is called once
    and stays what it was.

    Args:
        transformer: of diffusers, of a kind in `VELOCITIES`.
        settings: what its arguments depend on besides the tensors.

    Raises:
        ValueError: for a kind that can't be trained.
    """

    takes_keeps_first = True
    """Told to training's objective, which passes `keeps_first` on."""

    def __init__(self, transformer: nn.Module, settings: VelocitySettings) -> None:
        super().__init__()
        self.family = velocity_family_of(transformer)
        self.transformer = transformer
        self.settings = settings

    def check_trainable_from_cache(self) -> None:
        """Refuse a transformer that needs more than a cache of latents and text holds.

        Raises:
            ValueError: saying what, with the remedy.
        """
        if why := self.family.unsupported(self.transformer, self.settings):
            raise ValueError(
                f"transformer is a {class_name(self.transformer)} that can't be trained from a"
                f" cache: {why}"
            )

    @property
    def dtype(self) -> torch.dtype:
        """That the transformer takes latents and text in."""
        held: Any = self.transformer
        return held.dtype

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        *,
        keeps_first: Tensor | None = None,
        return_dict: bool = False,
        **conditions: Tensor,
    ) -> tuple[Tensor]:
        """The velocity (B, C, F, H, W) in the latents' dtype, as the only entry of a tuple.

        Args:
            hidden_states: (B, C, F, H, W), floating point: (1 - t) clip + t noise.
            timestep: (B,), 1000 t.
            encoder_hidden_states: (B, L, E), floating point.
            encoder_attention_mask: (B, L) bool, true where a text token may be seen; None shows
                all.
            keeps_first: (B,) bool, true where the first frame of the latents is without noise.
            return_dict: False alone is allowed, which training asks for.
            **conditions: what else the family is told, by the names of `VelocityCall`: `condition`,
                `image_embeds`, `pooled_embeds`, `glyph_embeds`, `glyph_mask`, `sound`,
                `sound_noise`.

        Raises:
            ValueError: for tensors that the transformer doesn't take.
        """
        if return_dict:
            raise ValueError("return_dict is True; False is allowed: leave it out")
        if unknown := sorted(set(conditions) - set(CONDITIONS)):
            raise ValueError(
                f"{', '.join(unknown)} is given; {', '.join(CONDITIONS)} are allowed: leave it out"
            )
        call = VelocityCall(
            hidden_states,
            timestep.float(),
            encoder_hidden_states,
            encoder_attention_mask,
            keeps_first,
            **conditions,
        )
        if keeps_first is not None and not self.family.takes_first_frame(self.settings):
            raise ValueError(
                f"keeps_first is given, and this {class_name(self.transformer)} has one noise level"
                " for all frames; None is allowed: set data.first_frame=0, or train Wan 2.2 TI2V,"
                " whose pipeline has expand_timesteps"
            )
        self._check_channels(call)
        if not self.family.takes_glyphs:
            call.refuse_glyphs(class_name(self.transformer))
        if not self.family.takes_sound:
            call.refuse_sound(class_name(self.transformer))
        if not self.family.keeps_precision:
            call = call.to(self.dtype)
        velocity = self.family.velocity(self.transformer, call, self.settings)
        return (velocity.to(hidden_states.dtype),)

    def _check_channels(self, call: VelocityCall) -> None:
        found = (call.latents.shape[1], call.prompt_embeds.shape[-1])
        family = self.family
        takes = (family.latent_channels(self.transformer), family.text_channels(self.transformer))
        if found != takes:
            raise ValueError(
                f"latents have {found[0]} channels and text {found[1]}; this transformer takes"
                f" {takes[0]} and {takes[1]}: make the cache by the VAE and the text encoder of its"
                " pipeline"
            )

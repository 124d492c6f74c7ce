"""MiniMax-H3: one packed sequence of text, sound and video without padding, so that every sample is
a call; timesteps count from noise to the clip, and so does the velocity.

Shape legend: T latents of a channel of sound, A their channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer._optional import needs
from freqformer.integrations.diffusers.velocity.call import (
    TIMESTEP_SCALE,
    VelocityCall,
    VelocityFamily,
    VelocitySettings,
)

NAME = "MiniMaxH3Transformer3DModel"
SOUND_CHANNELS = 2
FPS = 24
VIDEO_TAG, TEXT_TAG, SOUND_TAG = 0, 1, 2


def _velocity(transformer: Any, call: VelocityCall, settings: VelocitySettings) -> Tensor:
    call.refuse_images(NAME)
    call.refuse_pooled(NAME)
    if call.sound is None or call.sound_noise is None:
        raise ValueError(
            f"sound and sound_noise are missing, and a {NAME} makes sound with the video; (B, rows,"
            f" {transformer.config.audio_in_channels}) of both are allowed: make the cache with"
            " --vae and the whole pipeline's folder"
        )
    # Lengths of texts shape the sequence, so the host must know them.
    lengths = [call.prompt_embeds.shape[1]] * len(call.latents)
    if call.prompt_attention_mask is not None:
        lengths = call.prompt_attention_mask.sum(1).tolist()
    return torch.cat(
        [
            _of_one(transformer, call, place, length, settings)
            for place, length in enumerate(lengths)
        ]
    )


def _of_one(
    transformer: Any, call: VelocityCall, place: int, length: int, settings: VelocitySettings
) -> Tensor:
    """The velocity (1, C, F, H, W) of one sample."""
    from diffusers.modular_pipelines.minimax_h3.before_denoise import patchify_video_latents

    assert call.sound is not None
    assert call.sound_noise is not None
    latents = call.latents[place : place + 1]
    patch = tuple(transformer.config.patch_size)
    level = call.timestep[place] / TIMESTEP_SCALE
    heard = sound_level(level, settings.flow_shifts)
    sound = (1 - heard) * call.sound[place] + heard * call.sound_noise[place]
    layout = _layout(length, latents, len(sound) // SOUND_CHANNELS, patch)
    made = transformer(
        hidden_states=patchify_video_latents(latents, patch)[None],
        audio_hidden_states=sound[None],
        encoder_hidden_states=call.prompt_embeds[place : place + 1, :length],
        timestep=torch.stack([1 - level, 1 - heard]),
        # Text has the video's.
        timestep_indices=(layout["token_tags"] == SOUND_TAG).long(),
        return_dict=False,
        **layout,
    )[0]
    return -_unpatchified(made, latents, patch)


def sound_level(level: Tensor, shifts: tuple[float, float]) -> Tensor:
    """The noise level of sound in the step of the sampler in which the video has this one.

    Args:
        level: from 0 to 1.
        shifts: of the video's schedule and of the sound's.
    """
    video, sound = shifts
    even = level / (video - (video - 1) * level)
    return sound * even / (1 + (sound - 1) * even)


def _layout(length: int, latents: Tensor, sound: int, patch: tuple[int, ...]) -> dict[str, Tensor]:
    """The arguments that say what lies where in [text | sound | video], on the latents' device."""
    with needs("model"):
        from diffusers.modular_pipelines.minimax_h3.before_denoise import (
            MiniMaxH3PrepareLayoutStep,
        )

    frames, height, width = latents.shape[2:]
    positions, tags, video, audio, text, _, _ = MiniMaxH3PrepareLayoutStep.build_packed_sequence(
        torch.full((length,), TEXT_TAG),
        frames,
        height,
        width,
        sound,
        (patch[0], patch[1], patch[2]),
        SOUND_CHANNELS,
        SOUND_TAG,
        VIDEO_TAG,
    )
    made = {
        "position_ids": positions,
        "token_tags": tags,
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": text,
    }
    return {name: one.to(latents.device) for name, one in made.items()}


def _unpatchified(rows: Tensor, latents: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Rows (1, tokens, values) as latents of that shape; the inverse of diffusers' packing."""
    _, channels, *sides = latents.shape
    frames, height, width = (side // part for side, part in zip(sides, patch, strict=True))
    parts = rows.reshape(1, frames, height, width, channels, *patch)
    return parts.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(latents.shape)


def _unsupported(_transformer: Any, settings: VelocitySettings) -> str | None:
    if "sound" not in settings.conditions:
        return (
            "it makes sound with the video, and the cache has none: make the cache with --vae and"
            " the folder of its whole pipeline"
        )
    if settings.fps != FPS:
        return f"its videos have {FPS} frames a second: make the cache with --fps {FPS}"
    return None


FAMILY = VelocityFamily(_velocity, _unsupported, takes_sound=True, keeps_precision=True)

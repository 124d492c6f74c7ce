"""The transformers that can be trained, and why others can't be."""

from __future__ import annotations

from typing import Any

from freqformer.integrations.diffusers.ulysses import class_name
from freqformer.integrations.diffusers.velocity import (
    hunyuan_video,
    hunyuan_video15,
    ltx,
    minimax_h3,
    wan,
)
from freqformer.integrations.diffusers.velocity.call import VelocityFamily

VELOCITIES = {
    "WanTransformer3DModel": wan.FAMILY,
    "LTXVideoTransformer3DModel": ltx.FAMILY,
    "HunyuanVideoTransformer3DModel": hunyuan_video.FAMILY,
    "HunyuanVideo15Transformer3DModel": hunyuan_video15.FAMILY,
    "MiniMaxH3Transformer3DModel": minimax_h3.FAMILY,
}
REFUSED = {
    "LTX2VideoTransformer3DModel": "it needs sound beside the video",
    "WanVACETransformer3DModel": "it needs a control video",
    "WanAnimateTransformer3DModel": "it needs a pose and a face",
    "SkyReelsV2Transformer3DModel": "its noise levels differ from frame to frame",
    "CosmosTransformer3DModel": "each of its versions counts noise levels in its own way",
    "HunyuanVideoFramepackTransformer3DModel": "it needs frames of the past",
    "HeliosTransformer3DModel": "it needs frames of the past",
    "CogVideoXTransformer3DModel": "it learned a diffusion in steps, and no flow",
}
"""Why a cache of latents and one text embedding does not suffice."""
REMEDY = f"train one of {', '.join(VELOCITIES)}"


def velocity_family_of(transformer: Any) -> VelocityFamily:
    """How this transformer is asked for its velocity.

    Args:
        transformer: of diffusers.

    Raises:
        ValueError: for one that can't be trained from a cache, saying why.
    """
    return velocity_family_named(class_name(transformer))


def velocity_family_named(name: str) -> VelocityFamily:
    """As `velocity_family_of`, by the name of the transformer's class."""
    if name in VELOCITIES:
        return VELOCITIES[name]
    why = f", and {REFUSED[name]}" if name in REFUSED else ""
    raise ValueError(f"transformer is a {name}{why}; {', '.join(VELOCITIES)} are allowed: {REMEDY}")

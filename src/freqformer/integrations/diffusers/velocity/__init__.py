"""Transformers of diffusers as models that training knows: latents at a noise level and text in,
the flow's velocity out, whatever the transformer's own arguments are."""

from freqformer.integrations.diffusers.velocity.call import VelocityCall, VelocitySettings
from freqformer.integrations.diffusers.velocity.families import VELOCITIES, velocity_family_of
from freqformer.integrations.diffusers.velocity.model import VelocityModel

__all__ = [
    "VELOCITIES",
    "VelocityCall",
    "VelocityModel",
    "VelocitySettings",
    "velocity_family_of",
]

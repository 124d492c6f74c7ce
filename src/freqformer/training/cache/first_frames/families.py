"""The pipelines that are told a first frame beside the latents."""

from __future__ import annotations

from freqformer.training.cache.first_frames import wan
from freqformer.training.cache.first_frames.family import FirstFrameFamily

FIRST_FRAMES: dict[str, FirstFrameFamily] = {
    "WanImageToVideoPipeline": wan.FAMILY,
}
"""By the pipeline's class."""
CONDITION = "condition"
IMAGE_EMBEDS = "image_embeds"
"""Names of a clip's tensors in a shard, and of `VelocityModel`'s arguments."""

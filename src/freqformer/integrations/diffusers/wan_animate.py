"""Wan Animate: Wan's self-attention over the video and the frame of reference before it; the face's
cross-attention is left alone."""

from freqformer.integrations.diffusers.processor import Family, layers_in
from freqformer.integrations.diffusers.wan import WanProcessor, video_tokens

FAMILY = Family(layers_in("blocks", "attn1"), video_tokens, WanProcessor, ("WanAttnProcessor",))

"""SkyReels V2: Wan's attention. Models of causal blocks pass a mask, which is refused."""

from freqformer.integrations.diffusers.processor import Family, layers_in
from freqformer.integrations.diffusers.wan import WanProcessor, video_tokens

FAMILY = Family(
    layers_in("blocks", "attn1"), video_tokens, WanProcessor, ("SkyReelsV2AttnProcessor",)
)

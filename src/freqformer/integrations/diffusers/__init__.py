"""Frequency attention inside a video transformer of diffusers: one call on, one call off, and no
class is patched.

Self-attention layers get another processor, and hooks on the transformer tell it the token grid and
the timesteps of the call, which reach no processor by themselves.
"""

from freqformer._optional import needs

with needs("model"):
    from freqformer.integrations.diffusers.enable import (
        disable_frequency_attention,
        enable_frequency_attention,
    )
    from freqformer.integrations.diffusers.handle import FrequencyAttentionHandle
    from freqformer.integrations.diffusers.processor import (
        FrequencyProcessor,
    )

__all__ = [
    "FrequencyAttentionHandle",
    "FrequencyProcessor",
    "disable_frequency_attention",
    "enable_frequency_attention",
]

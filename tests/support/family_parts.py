"""What whole small pipelines of several families share."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from tests.support.tiny_pipelines import TEXT_CHANNELS, WORDS

LANGUAGE: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": TEXT_CHANNELS,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
"""Of the language models that read prompts."""
CHANNELS = 4
"""Of latents."""


def picture(width: int = 160, height: int = 128) -> Image.Image:
    """Colours that rise from left to right and from top to bottom."""
    rising = torch.linspace(0, 1, width).expand(height, -1)
    falling = torch.linspace(1, 0, height)[:, None].expand(-1, width)
    pixels = torch.stack([rising, falling, rising * falling], 2)
    return Image.fromarray((255 * pixels).to(torch.uint8).numpy())


def moving_pictures(frames: int) -> list[Image.Image]:
    """Frames of a video to follow."""
    return [picture().rotate(5 * place) for place in range(frames)]


def quiet(pipe: Any) -> Any:
    """Without a progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe

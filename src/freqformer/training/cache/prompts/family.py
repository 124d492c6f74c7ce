"""How a kind of pipeline embeds a prompt.

Shape legend: L text tokens, E their channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptEmbeds:
    """What a pipeline makes of one prompt, floating point, on any device."""

    tokens: Tensor
    """(L, E), without padding, L at least 1."""
    others: dict[str, Tensor]
    """What else its transformer is told, by the names of `VelocityModel`'s arguments; of one shape
    for all prompts."""


@dataclass(frozen=True)
class PromptFamily:
    """How one kind of pipeline embeds a prompt."""

    components: tuple[str, ...]
    """The parts of the pipeline that it is done by; an encoder in each folder, or a tokenizer."""
    embed: Callable[[Any, str, int], PromptEmbeds]
    """(pipeline with these parts alone, prompt, tokens at most)."""
    others: tuple[str, ...] = ()
    """Names of `PromptEmbeds.others`, sorted."""
    load: Callable[[Path, torch.dtype], Any] | None = None
    """(folder, dtype) -> what `embed` takes, for a pipeline that can't be loaded without its other
    parts; it raises OSError or ValueError."""

"""Cosmos 1, Predict 2 and Predict 2.5: video tokens alone, turned by the two halves of a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.integrations.diffusers.calls import Share
from freqformer.integrations.diffusers.processor import Family, UsualProcessor, layers_in
from freqformer.integrations.diffusers.query_key import halves
from freqformer.integrations.diffusers.steps import rounded
from freqformer.integrations.diffusers.wan import video_tokens


class CosmosProcessor(UsualProcessor):
    """The processor of one self-attention layer of Cosmos."""

    def banded(
        self,
        attn: Any,
        share: Share,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C), tokens in raster order."""
        self.refuse(attention_mask)
        return self.layer(attn, share, hidden_states, halves(rotary))


def _timesteps(given: dict[str, Any]) -> Tensor:
    """Noise levels.

    Cosmos 1 gives log(sigma) / 4, with fps; 2 and 2.5 give the level itself, of every latent frame
    (B, 1, F, 1, 1), where the frames that are given come first and have levels of their own.
    """
    steps = torch.as_tensor(given["timestep"]).detach().double().cpu()
    if steps.ndim > 1:
        return steps.flatten(1)[:, -1]
    return _level(steps.reshape(-1)) if given.get("fps") is not None else steps.reshape(-1)


def _level(timestep: Tensor) -> Tensor:
    """Of sigma / (1 + sigma), from log(sigma) / 4."""
    return torch.sigmoid(4 * timestep)


def _same(level: Tensor) -> Tensor:
    return level


def _schedule(scheduler: Any, dtype: torch.dtype | None) -> Tensor:
    """Noise levels of the steps. Cosmos 2 has sigmas up to 80, 2.5 up to 1."""
    if hasattr(scheduler, "precondition_noise"):
        return _level(rounded(torch.as_tensor(scheduler.timesteps), dtype))
    sigmas = torch.as_tensor(scheduler.sigmas[: len(scheduler.timesteps)])
    return rounded(sigmas / (1 + sigmas) if float(sigmas.max()) > 1 else sigmas, dtype)


FAMILY = Family(
    layers_in("transformer_blocks", "attn1"),
    video_tokens,
    CosmosProcessor,
    ("CosmosAttnProcessor2_0",),
    _timesteps,
    _same,
    _schedule,
)

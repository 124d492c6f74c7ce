"""Rectified-flow training: noise levels, and the loss of the flow's velocity.

Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
arXiv 2403.03206. Shape legend: B batch, C channels, F frames, H height, W width, L text
tokens, E their channels. Timesteps are in
[0, 1], and 1 is pure noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from freqformer.routing import routing_loss
from freqformer.training.samples import TrainingBatch

if TYPE_CHECKING:
    from freqformer.grid import Grid
    from freqformer.models.transformer import FreqFormerTransformer3DModel
    from freqformer.training.config import RoutingConfig

BASE_TOKENS = 3024
"""Tokens up to which timesteps are not shifted. The square-root law through it gives 75,600 tokens
(720p, 5 s) the shift of 5 that published video models use there."""
ALL_LEVELS = (0.0, 1.0)
TIMESTEP_SCALE = 1000
"""Models take timesteps as diffusers' schedulers give them, from 0 to 1000."""


def resolution_shift(num_tokens: int) -> float:
    """The timestep shift for a clip: sqrt(num_tokens / 3024), at least 1 (arXiv 2403.03206,
    equation 23).

    More tokens average noise out, so as much detail is lost only at a higher noise level.

    Args:
        num_tokens: tokens of the clip after patchify.

    Raises:
        ValueError: for less than one token.
    """
    if not num_tokens >= 1:
        raise ValueError(f"num_tokens is {num_tokens!r}; whole numbers from 1 up are allowed")
    return max(1.0, math.sqrt(num_tokens / BASE_TOKENS))


def shift_timestep(timestep: Tensor, shift: float) -> Tensor:
    """shift * t / (1 + (shift - 1) * t): 0 and 1 stay, what is between moves towards 1 for a shift
    above 1."""
    return shift * timestep / (1 + (shift - 1) * timestep)


def sample_timesteps(
    batch: int,
    shift: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    stratified: bool = True,
) -> Tensor:
    """Noise levels: a normal logit, then the resolution shift (arXiv 2403.03206, section 3.1).

    Args:
        batch: how many.
        shift: from `resolution_shift`; 1 for none.
        generator: a CPU generator; None takes torch's.
        mean, std: of the logit before the shift.
        stratified: one timestep from each of `batch` equally likely parts, in random order; each
            alone has the same distribution as without.

    Returns: (B,) float32 in (0, 1), on the CPU.
    """
    place = torch.rand(batch, generator=generator, dtype=torch.float64)
    if stratified:
        place = (torch.randperm(batch, generator=generator) + place) / batch
    # The quantile at 0 is -inf, which would give the timestep 0.
    logit = mean + std * torch.special.ndtri(place.clamp(1e-9, 1 - 1e-9))
    timestep = shift_timestep(logit.sigmoid(), shift).float()
    return timestep.clamp(torch.finfo(torch.float32).tiny, 1 - torch.finfo(torch.float32).eps / 2)


def within(timestep: Tensor, levels: tuple[float, float]) -> Tensor:
    """Timesteps in [0, 1] brought into a part of it, evenly; the same tensor for all of it."""
    low, high = levels
    return timestep if levels == ALL_LEVELS else low + (high - low) * timestep


def batch_loss(model: nn.Module, batch: TrainingBatch, timestep: Tensor) -> Tensor:
    """`flow_matching_loss` of a batch, its text included.

    Args:
        model: as there.
        batch: on the model's device.
        timestep: (B,) in [0, 1].
    """
    return flow_matching_loss(
        model,
        batch.clip,
        timestep,
        batch.noise,
        prompt_embeds=batch.prompt_embeds,
        prompt_attention_mask=batch.prompt_attention_mask,
        keeps_first=batch.keeps_first,
        conditions=batch.conditions,
    )


def flow_matching_loss(
    model: nn.Module,
    clip: Tensor,
    timestep: Tensor,
    noise: Tensor,
    *,
    prompt_embeds: Tensor | None = None,
    prompt_attention_mask: Tensor | None = None,
    keeps_first: Tensor | None = None,
    conditions: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Mean squared error of the velocity at x_t = (1 - t) clip + t noise; the target is noise -
    clip.

    Args:
        model: takes (hidden_states, timestep in [0, 1000], return_dict=False) and returns a tuple
            whose first entry is the velocity, shaped like the clip.
        clip: (B, C, F, H, W), in [-1, 1] for pixels.
        timestep: (B,) in [0, 1].
        noise: standard normal, shaped like the clip.
        prompt_embeds: (B, L, E) of a model with text, passed on as `encoder_hidden_states`.
        prompt_attention_mask: (B, L) bool, passed on as `encoder_attention_mask`.
        keeps_first: (B,) bool, true where x_t holds the clip's own first frame, which then has no
            part in the loss.
        conditions: more arguments of the model by name, each (B, ...).

    Returns: a scalar, float32 at least.

    Raises:
        ValueError: where shapes do not match.
    """
    if noise.shape != clip.shape or tuple(timestep.shape) != clip.shape[:1]:
        raise ValueError(
            f"clip has shape {tuple(clip.shape)}, noise {tuple(noise.shape)} and timestep "
            f"{tuple(timestep.shape)}; noise "
            "like the clip and one timestep per clip are allowed"
        )
    t = timestep.to(clip).view(-1, *[1] * (clip.ndim - 1))
    text = {
        "encoder_hidden_states": prompt_embeds,
        "encoder_attention_mask": prompt_attention_mask,
    }
    given = {name: value for name, value in text.items() if value is not None}
    given |= conditions or {}
    noisy = (1 - t) * clip + t * noise
    known = None if keeps_first is None else _first_frames(clip, keeps_first)
    if known is not None:
        noisy = torch.where(known, clip, noisy)
    if keeps_first is not None and tells_first_frames(model):
        given["keeps_first"] = keeps_first
    velocity = model(noisy, timestep * TIMESTEP_SCALE, return_dict=False, **given)[0]
    target = noise - clip
    if velocity.shape != target.shape:
        raise ValueError(
            f"model gave {tuple(velocity.shape)} for a clip {tuple(clip.shape)}; the same shape is "
            "allowed"
        )
    velocity = velocity.to(target)
    if known is None:
        return functional.mse_loss(velocity, target)
    # Sums, since to pick values by a mask the host would have to know how many there are.
    squares = (velocity - target).square().masked_fill(known, 0)
    return squares.sum() / (~known).sum()


def tells_first_frames(model: nn.Module) -> bool:
    """Whether a model is told which first frames are without noise: those of diffusers are, while
    this library's own see it."""
    return bool(getattr(getattr(model, "module", model), "takes_keeps_first", False))


def _first_frames(clip: Tensor, chosen: Tensor) -> Tensor:
    """bool, shaped like the clip (B, C, F, H, W): the first frames of the chosen (B,) clips."""
    first = torch.arange(clip.shape[2], device=clip.device) == 0
    return (chosen[:, None] & first)[:, None, :, None, None].expand(clip.shape)


def router_terms(
    model: FreqFormerTransformer3DModel, grid: Grid, settings: RoutingConfig, progress: float
) -> Tensor | None:
    """Budget and entropy terms of the last forward pass, a scalar; None where no router learns to
    choose.

    Args:
        model: that ran.
        grid: of the clip's tokens.
        settings: weights of the terms.
        progress: share of the run that is done, with which the entropy's weight falls to 0.
    """
    if settings.mode == "off" or not any(layer.chooses for layer in model.attentions):
        return None
    costs = model.routing_costs(grid)
    *cheap, dense = costs
    even = sum(cheap) / len(cheap) / dense
    return routing_loss(
        model.routing_logits,
        costs,
        budget=even if settings.budget is None else settings.budget,
        budget_weight=settings.budget_weight,
        entropy_weight=settings.entropy_weight * (1 - progress),
    )


def learning_rate_factor(step: int, progress: float, warmup_steps: int) -> float:
    """What the learning rate is multiplied by: a linear warm-up times half a cosine.

    Args:
        step: steps done before this one.
        progress: share of the run that is done, from 0 to 1.
        warmup_steps: steps of the warm-up; the first one already moves.

    Returns: from 0 to 1.
    """
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return warmup * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))

"""Rectified-flow training: noise levels, and the loss of the flow's velocity.

Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
arXiv 2403.03206. Shape legend: B batch, C channels, F frames, H height, W width. Timesteps are in
[0, 1], and 1 is pure noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

BASE_TOKENS = 3024
"""Tokens up to which timesteps are not shifted. The square-root law through it gives 75,600 tokens
(720p, 5 s) the shift of 5 that published video models use there."""
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


def flow_matching_loss(model: nn.Module, clip: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity at x_t = (1 - t) clip + t noise; the target is noise -
    clip.

    Args:
        model: takes (hidden_states, timestep in [0, 1000], return_dict=False) and returns a tuple
            whose first entry is the velocity, shaped like the clip.
        clip: (B, C, F, H, W), in [-1, 1] for pixels.
        timestep: (B,) in [0, 1].
        noise: standard normal, shaped like the clip.

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
    velocity = model((1 - t) * clip + t * noise, timestep * TIMESTEP_SCALE, return_dict=False)[0]
    target = noise - clip
    if velocity.shape != target.shape:
        raise ValueError(
            f"model gave {tuple(velocity.shape)} for a clip {tuple(clip.shape)}; the same shape is "
            "allowed"
        )
    return functional.mse_loss(velocity.to(target), target)


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

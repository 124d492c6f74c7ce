"""The loss on clips that are not trained on, by noise level."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from freqformer.training.objective import flow_matching_loss
from freqformer.training.seeding import derive_generator

if TYPE_CHECKING:
    from torch import nn

    from freqformer.training.cache.reading import LatentCache


def choose_held_out(clips: int, count: int, seed: int) -> list[int]:
    """The numbers of the clips that are held out, rising.

    Args:
        clips: of the cache.
        count: to hold out.
        seed: of the run.

    Raises:
        ValueError: where none would be left.
    """
    if count >= clips:
        raise ValueError(
            f"validation.held_out is {count} and the cache has {clips} clips; fewer are allowed"
        )
    order = torch.randperm(clips, generator=derive_generator(seed, "held out"))
    return sorted(order[:count].tolist())


@torch.no_grad()
def held_out_losses(
    model: nn.Module,
    cache: LatentCache,
    numbers: Sequence[int],
    levels: Sequence[float],
    seed: int,
    device: torch.device,
) -> dict[float, float]:
    """The mean loss of the velocity at every noise level; the same noise at every call.

    Args:
        model: whose prediction is measured.
        cache: of the clips.
        numbers: of the clips in its index.
        levels: from 0 to 1.
        seed: of samples and noise.
        device: of the model.
    """
    found: dict[float, list[float]] = {level: [] for level in levels}
    for number in numbers:
        held = cache.clip(number, derive_generator(seed, "held-out clip", number))
        clip = held.latents
        noise = torch.randn(clip.shape, generator=derive_generator(seed, "held-out noise", number))
        text = cache.index.clips[number].text
        told = None if text < 0 else cache.caption(text)
        embeds = None if told is None else told.tokens[None].to(device)
        others = {} if told is None else told.others
        both = {**held.conditions, **others}
        conditions = {name: x[None].to(device) for name, x in both.items()}
        for level in levels:
            loss = flow_matching_loss(
                model,
                clip[None].to(device),
                torch.tensor([level], device=device),
                noise[None].to(device),
                prompt_embeds=embeds,
                conditions=conditions,
            )
            found[level].append(float(loss))
    return {level: fmean(losses) for level, losses in found.items()}

"""Numbers that say how generated videos differ from held-out clips, without a trained network.

Features are those of a fixed network of random weights, from one seed. A trained one would have
learned from the clips of the study by one of the attentions that are compared, or from photographs
that these clips don't resemble; random features are advised for such data (Naeem et al., arXiv
2002.09797). Its distances compare models of this study, and no others.

Shape legend: B videos, F frames, G segments of frames, C features, S rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SEED = 0
"""Of the network's weights."""
SEGMENT = 4
"""Frames whose features are one sample."""
CHANNELS = (3, 24, 32, 24)
STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
NUM_FEATURES = 2 * CHANNELS[-1]


class Seen(NamedTuple):
    """What is measured of every video."""

    features: Tensor
    """float64 (B, G, C)."""
    statistics: Tensor
    """float64 (B, G, 3): contrast, motion and flicker, see `Means`."""


@dataclass(frozen=True)
class Means:
    """Means over videos and segments."""

    contrast: float
    """Standard deviation of a frame's pixels."""
    motion: float
    """Root mean square of the difference between neighbouring frames."""
    flicker: float
    """Root mean square of the second difference of three frames, over the motion: a pixel that
    jumps there and back has much, one that glides has little."""


@torch.no_grad()
def look_at(videos: Tensor) -> Seen:
    """Measure videos (B, 3, F, S, S) in [-1, 1]; F is a multiple of `SEGMENT`."""
    segments = videos.float().unflatten(2, (-1, SEGMENT)).transpose(1, 2)
    batch, count = segments.shape[:2]
    flat = segments.flatten(0, 1)
    found = (_features(flat), _statistics(flat))
    return Seen(*(x.double().cpu().unflatten(0, (batch, count)) for x in found))


def _features(segments: Tensor) -> Tensor:
    """(B, 3, F, S, S) -> (B, C): mean and deviation over places of the last layer."""
    x = segments
    for weight, stride in zip(_weights(segments.device), STRIDES, strict=True):
        x = functional.relu(functional.conv3d(x, weight, stride=stride, padding=1))
    x = x.flatten(2)
    return torch.cat([x.mean(2), x.std(2)], 1)


@lru_cache(maxsize=2)
def _weights(device: torch.device) -> list[Tensor]:
    draw = torch.Generator().manual_seed(SEED)
    made = []
    for inputs, outputs in pairwise(CHANNELS):
        weight = torch.randn(outputs, inputs, 3, 3, 3, generator=draw)
        made.append((weight * (2 / (27 * inputs)) ** 0.5).to(device))
    return made


def _statistics(segments: Tensor) -> Tensor:
    """(B, 3, F, S, S) -> (B, 3)."""
    contrast = segments.flatten(3).std(3).mean((1, 2))
    motion = segments.diff(dim=2).square().mean((1, 2, 3, 4)).sqrt()
    second = segments.diff(n=2, dim=2).square().mean((1, 2, 3, 4)).sqrt()
    return torch.stack([contrast, motion, second / motion.clamp_min(1e-6)], 1)


def means(seen: Seen) -> Means:
    """Over everything that was seen."""
    return Means(*seen.statistics.mean((0, 1)).tolist())


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance of two normal distributions with the samples' moments (Heusel et al., arXiv
    1706.08500), over the reference's variance.

    Args:
        features, reference: float64 (samples, C), at least two of each.

    Returns: 0 where the moments agree.
    """
    (mean, covariance), (other_mean, other) = (_moments(x) for x in (features, reference))
    values, vectors = torch.linalg.eigh(other)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    between = torch.linalg.eigvalsh(root @ covariance @ root).clamp_min(0).sqrt().sum()
    distance = (mean - other_mean).square().sum()
    distance += covariance.trace() + other.trace() - 2 * between
    return float(distance / other.trace())


def _moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    return samples.mean(0), samples.T.cov()

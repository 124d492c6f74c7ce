"""Norm and rotary embedding of a call's queries and keys in plain PyTorch.

Shape legend: B batch, N video tokens, X text tokens, H heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.tokens import rms_norm, rotate


def normalised(
    x: Tensor, weight: Tensor | None, given: AttentionParameters, num_video_tokens: int
) -> Tensor:
    """x (B, N + X, H, D) after the norm that `given` describes; the same tensor without a
    weight."""
    if weight is None:
        return x
    if given.norm_text or x.shape[1] == num_video_tokens:
        return _normed(x, weight, given)
    video, text = x[:, :num_video_tokens], x[:, num_video_tokens:]
    return torch.cat([_normed(video, weight, given), text], 1)


def _normed(x: Tensor, weight: Tensor, given: AttentionParameters) -> Tensor:
    if not given.norm_across_heads:
        return rms_norm(x, weight, given.norm_eps)
    return rms_norm(x.flatten(2), weight.flatten(), given.norm_eps).unflatten(2, x.shape[2:])


def rotated(x: Tensor, given: AttentionParameters, first: int = 0) -> Tensor:
    """x (B, N + X, H, D) with its tokens from `first` on turned, as far as there are tables."""
    rotation = given.rotation
    if rotation is None or first >= rotation.cos.shape[1]:
        return x
    cos, sin = (table[:, first:].transpose(1, 2) for table in (rotation.cos, rotation.sin))
    end = rotation.cos.shape[1]
    turned = rotate(x[:, first:end].transpose(1, 2), (cos, sin), rotation.pairs).transpose(1, 2)
    return torch.cat([x[:, :first], turned, x[:, end:]], 1)


def prepared(
    query: Tensor, key: Tensor, given: AttentionParameters, num_video_tokens: int
) -> tuple[Tensor, Tensor]:
    """Query and key (B, N + X, H, D) normalised and rotated as `given` asks the operation to."""
    query = normalised(query, given.query_norm, given, num_video_tokens)
    key = normalised(key, given.key_norm, given, num_video_tokens)
    return rotated(query, given), rotated(key, given)

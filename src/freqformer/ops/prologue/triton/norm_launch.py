"""The launch of a norm across heads: the host side.

Shape legend: B batch, N video tokens, X text tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.buffers import buffer_width
from freqformer.ops.jit import constant
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.prologue.triton.arguments import Common, Qkv
from freqformer.ops.prologue.triton.norm_kernels import token_scales

SCALED_TOKENS = 16
"""Tokens of one program."""


def normed_across(given: AttentionParameters) -> bool:
    """Whether queries or keys are normalised over all heads' channels."""
    normed = given.query_norm is not None or given.key_norm is not None
    return given.norm_across_heads and normed


def find_scales(common: Common, query: Tensor, text_mask: Tensor | None) -> Tensor:
    """One over the root mean square of all heads' channels of every query and key, float32 (2, B, N
    + X)."""
    batch, tokens, _, head_dim = query.shape
    scales = query.new_empty(2, batch, tokens, dtype=torch.float32)
    token_scales[scaled_programs(batch, tokens)](
        common.qkv,
        scales,
        text_mask,
        common.learned.eps,
        common.sizes,
        BLOCK=constant(SCALED_TOKENS),
        D=constant(head_dim),
        W=constant(buffer_width(head_dim)),
    )
    return scales


def scaled_programs(batch: int, tokens: int) -> tuple[int, int]:
    """Programs of the launches of a norm across heads."""
    return batch * -(-tokens // SCALED_TOKENS), 2


def with_scales(common: Common, scales: Tensor | None) -> Common:
    """With what `find_scales` found, for the norms that there are."""
    if scales is None:
        return common
    query_scales, key_scales = scales.unbind(0)
    query, key, value = common.qkv
    if query.norm is not None:
        query = query._replace(scales=query_scales)
    if key.norm is not None:
        key = key._replace(scales=key_scales)
    return common._replace(qkv=Qkv(query, key, value))

"""Eager and reference attention: a call's bands one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from freqformer.ops.backends import PlainImpl
from freqformer.ops.branches import Branches
from freqformer.ops.checks import head_bands, row_numbers
from freqformer.ops.parameters import AttentionParameters, BranchGates, KnownBands
from freqformer.ops.tokens import TokenOrder
from freqformer.plan import AttentionPlan, Selection


def unfused_attention(
    tensors: tuple[Tensor, Tensor, Tensor],
    allocation: Tensor | Sequence[int] | KnownBands,
    *,
    plan: AttentionPlan,
    parameters: AttentionParameters | None,
    low_branch: BranchGates | None,
    text_mask: Tensor | None,
    selection: Selection | None,
    token_order: TokenOrder,
    impl: PlainImpl,
) -> Tensor:
    """See `attention.frequency_attention`, whose checks have passed."""
    query = tensors[0]
    known = isinstance(allocation, KnownBands)
    bands = head_bands(allocation.bands if known else allocation, query)
    if torch.compiler.is_compiling():
        # Imported here: registering an operation takes time, and most processes compile nothing.
        from freqformer.ops.unfused_operation import attention

        return attention(
            tensors,
            bands,
            plan=plan,
            parameters=parameters,
            low_branch=low_branch,
            text_mask=text_mask,
            selection=selection,
            token_order=token_order,
            impl=impl,
        )
    branches = Branches(tensors, text_mask, plan, parameters, token_order, impl)
    return branches.output(row_numbers(bands, query), selection, low_branch)

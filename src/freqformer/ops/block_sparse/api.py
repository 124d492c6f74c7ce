"""The block-sparse attention operation: what it computes, whichever code runs it.

    out_i = softmax_j(q_i . k_j / sqrt(D) + bias_j) v_j

over j in the tokens of the listed tiles and the extra keys. Shape legend: R rows (batch and head
pairs), N video tokens in tile order, T tiles, Q queries, L longest list, E extra keys, C cells, D
head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from freqformer.grid import TileLayout
from freqformer.ops.backends import PlainImpl
from freqformer.patterns import SummaryCells


@dataclass(frozen=True)
class TileLists:
    """Which exact video keys a query tile sees, and how its low summaries are counted."""

    layout: TileLayout
    lists: Tensor
    """Key tiles of every query tile, int64 (R or 1, T, L); -1 behind the end."""
    cells: SummaryCells | None
    """With cells, the first C extra keys are summaries of exact tokens: each also gets the bias
    log(tokens of its cell that the query tile doesn't see exactly), -inf where none is left."""


def block_sparse_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    extras: tuple[Tensor, Tensor, Tensor],
    tiles: TileLists | None,
    *,
    impl: PlainImpl,
) -> Tensor:
    """Attention of every row over its listed tiles and its extra keys.

    Args:
        query: (R, N, D) in tile order, or any (R, Q, D) where `tiles` is None.
        key, value: (R, N, D) in tile order; None where `tiles` is None.
        extras: extra keys (R, E, D), values (R, E, D) and bias (R, E); every query of the row sees
            them.
        tiles: the lists; None for extra keys only, as LOW heads have.
        impl: `reference` (a full mask, any float dtype, memory quadratic) or `eager` (gathers in
            cache-sized chunks, recomputed in backward, memory linear).

    Returns: the shape and dtype of query. A query with no key at all gives zeros.
    """
    from freqformer.ops.block_sparse import eager, reference

    attend = {"reference": reference.attend, "eager": eager.attend}[impl]
    return attend(query, key, value, extras, tiles)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, *, impl: PlainImpl
) -> Tensor:
    """Exact attention of (R, Q, D) over (R, K, D); `key_mask` bool (R, K) is True where a key may
    be seen."""
    from freqformer.ops.block_sparse import eager, reference

    attend = {"reference": reference.attend_dense, "eager": eager.attend_dense}[impl]
    return attend(query, key, value, key_mask)

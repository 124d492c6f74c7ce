"""The launch that pools the tiles of learned summaries: the host side of `pooling_kernel.py`.

Shape legend: R rows, T tiles, D head_dim, W channels of a row of the buffers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from freqformer.buffers import buffer_width
from freqformer.ops.architectures import FLOAT32, architecture
from freqformer.ops.prologue.triton.arguments import Allocation, Blocks, Common
from freqformer.ops.prologue.triton.pooling_kernel import Pools, pool_tiles

CHUNK = 64
"""Tokens whose keys in a band a program holds at once: rows that a warp group of Hopper
multiplies."""
SMALL_CHUNK = 32
"""The same where registers hold fewer."""
WIDE = 128
"""Channels up to which a program has four warps."""


def pool_chunk(query: Tensor) -> int:
    """Tokens of a tile whose keys in a band a program holds at once.

    Args:
        query: of the call, (B, N + X, H, D).
    """
    # On sm_100 a product of 64 rows lies in tensor memory, and Triton 3.7 fails to compile pairs of
    # its channels.
    tensor_memory = architecture(query.device).name == "sm_100"
    wide = buffer_width(query.shape[-1]) > WIDE
    return SMALL_CHUNK if wide or tensor_memory or not _multiplies(query) else CHUNK


def pool_rows(common: Common, allocation: Allocation, blocks: Blocks) -> Pools:
    """The poolings of all tiles in the bands whose summaries their row sees.

    Args:
        common: see `arguments.py`; with pooling queries.
        blocks: with `pool_chunk` tokens at once.
    """
    query = common.qkv.query.base
    sizes = common.sizes
    width = blocks.W.value
    pools = Pools(
        sums=query.new_empty(sizes.rows, sizes.tiles, 2, 2, width, dtype=torch.float32),
        softmax=query.new_empty(sizes.rows, sizes.tiles, 2, 2, dtype=torch.float32),
    )
    pool_tiles[(sizes.rows * sizes.tiles,)](
        common.qkv,
        allocation,
        pools,
        common.tiles,
        common.learned,
        sizes,
        blocks,
        # Without matrix units the factors of a product lie in registers: few keys at once.
        HELD=blocks.SLOTS if _multiplies(query) else blocks.CHUNK,
        num_warps=4 if width <= WIDE else 8,  # pyright: ignore[reportCallIssue]
        num_stages=1,  # pyright: ignore[reportCallIssue]
    )
    return pools


def _multiplies(query: Tensor) -> bool:
    """Whether matrix units multiply what the call brought."""
    return query.dtype != torch.float32 and architecture(query.device).half is not FLOAT32

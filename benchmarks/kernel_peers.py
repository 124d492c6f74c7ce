"""Other block-sparse attention kernels on the same lists of key tiles, each behind one function.

A peer takes query, key and value (H, N, D) and lists (H, T, kept) of tiles of 128 tokens, and
returns a call that gives (H, N, D).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from freqformer.grid import TILE_SLOTS

Peer = Callable[[Tensor, Tensor, Tensor, Tensor], Callable[[], Tensor]]


def available() -> dict[str, Peer]:
    """The peers whose packages are installed, by name."""
    known = {
        "FlexAttention": (flex_attention, "torch.nn.attention.flex_attention"),
        "FlashAttention-4 CuTe": (flash_attention_4, "flash_attn.cute.interface"),
        "cuDNN block-sparse": (cudnn_block_sparse, "cudnn.block_sparse_attention"),
    }
    return {name: peer for name, (peer, module) in known.items() if _installed(module)}


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _padded(lists: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (1, H, T) and lists (1, H, T, T) with the kept tiles first, as block masks hold
    them."""
    heads, tiles, kept = lists.shape
    counts = torch.full((1, heads, tiles), kept, dtype=torch.int32, device=lists.device)
    full = torch.zeros(1, heads, tiles, tiles, dtype=torch.int32, device=lists.device)
    full[..., :kept] = lists
    return counts, full


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, lists: Tensor
) -> Callable[[], Tensor]:
    """torch's FlexAttention, compiled."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    counts, full = _padded(lists)
    none = torch.zeros_like(counts), torch.zeros_like(full)
    mask = BlockMask.from_kv_blocks(*none, counts, full, BLOCK_SIZE=(TILE_SLOTS, TILE_SLOTS))
    return lambda: compiled(query[None], key[None], value[None], block_mask=mask)[0]  # pyright: ignore


def flash_attention_4(
    query: Tensor, key: Tensor, value: Tensor, lists: Tensor
) -> Callable[[], Tensor]:
    """FlashAttention-4 in the CuTe DSL, flash-attn-4 4.0.0b36."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch  # pyright: ignore[reportMissingImports]
    from flash_attn.cute.interface import _flash_attn_fwd  # pyright: ignore[reportMissingImports]

    counts, full = _padded(lists)
    blocks = BlockSparseTensorsTorch(
        mask_block_cnt=torch.zeros_like(counts),
        mask_block_idx=torch.zeros_like(full),
        full_block_cnt=counts,
        full_block_idx=full,
        block_size=(TILE_SLOTS, TILE_SLOTS),
    )
    tensors = [x.transpose(0, 1)[None].contiguous() for x in (query, key, value)]
    return lambda: _flash_attn_fwd(*tensors, block_sparse_tensors=blocks)[0][0].transpose(0, 1)


def cudnn_block_sparse(
    query: Tensor, key: Tensor, value: Tensor, lists: Tensor
) -> Callable[[], Tensor]:
    """cuDNN's block-sparse attention, nvidia-cudnn-frontend 1.32."""
    from cudnn.block_sparse_attention import block_sparse_attention_forward  # pyright: ignore[reportMissingImports]

    counts, _ = _padded(lists)
    tensors = [x[None] for x in (query, key, value)]

    def run() -> Tensor:
        found = block_sparse_attention_forward(
            *tensors, lists[None].contiguous(), q2k_block_nums=counts, sparse_block_size=TILE_SLOTS
        )
        return found["o_tensor"][0]

    return run

"""Other projects' attention kernels on the works of `peers.py`. Each is imported where it first
runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from freqformer.grid import TILE_SLOTS
from peers_lists import Lists
from peers_work import Grads, Timed, Work, batched, heads_first, heads_last


def _autograd(work: Work, call: Callable[..., Tensor]) -> Timed:
    """The backward of a call of (1, H, N, D) tensors."""
    leaves = [x.detach().clone().requires_grad_() for x in batched(work)]
    out = call(*leaves)
    grad_out = work.grad_out[None]
    return Timed(
        lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True),
        lambda grads: Grads(*(grad[0] for grad in grads)),
    )


# Dense attention by cuDNN, as torch calls it.


def _cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with _chosen(query):
        return F.scaled_dot_product_attention(query, key, value)


def _chosen(query: Tensor) -> AbstractContextManager:
    return sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if query.is_cuda else nullcontext()


def cudnn_forward(work: Lists) -> Timed:
    tensors = batched(work)
    return Timed(lambda: _cudnn(*tensors), lambda out: out[0])


def cudnn_backward(work: Lists) -> Timed:
    return _autograd(work, _cudnn)


# FlashAttention-4 in the CuTe DSL; its layout is (1, N, H, D).


def _interface() -> Any:
    return import_module("flash_attn.cute.interface")


def _counts_of(lists: Tensor) -> Tensor:
    heads, tiles, kept = lists.shape
    return torch.full((heads, tiles), kept, dtype=torch.int32, device=lists.device)


def _padded(lists: Tensor) -> Tensor:
    """(H, T, kept) -> (H, T, T), what is listed first."""
    _, tiles, kept = lists.shape
    return F.pad(lists, (0, tiles - kept))


def _flash_blocks(counts: Tensor, lists: Tensor) -> Any:
    sparsity = import_module("flash_attn.cute.block_sparsity")
    return sparsity.BlockSparseTensorsTorch(
        mask_block_cnt=torch.zeros_like(counts)[None],
        mask_block_idx=torch.zeros_like(lists)[None],
        full_block_cnt=counts[None],
        full_block_idx=lists[None],
        block_size=(TILE_SLOTS, TILE_SLOTS),
    )


def flash4_forward(work: Lists, *, sparse: bool) -> Timed:
    call = _interface()._flash_attn_fwd
    tensors = [heads_last(x) for x in (work.query, work.key, work.value)]
    blocks = _flash_blocks(_counts_of(work.lists), _padded(work.lists)) if sparse else None
    return Timed(
        lambda: call(*tensors, block_sparse_tensors=blocks), lambda found: heads_first(found[0])
    )


def flash4_backward(work: Lists, *, sparse: bool) -> Timed:
    interface = _interface()
    tensors = [heads_last(x) for x in (work.query, work.key, work.value)]
    grad_out = heads_last(work.grad_out)
    listed = listing = None
    if sparse:
        listed = _flash_blocks(_counts_of(work.lists), _padded(work.lists))
        listing = _flash_blocks(*work.turned)
    out, lse, *_ = interface._flash_attn_fwd(*tensors, block_sparse_tensors=listed, return_lse=True)
    return Timed(
        lambda: interface._flash_attn_bwd(
            *tensors, out, grad_out, lse, block_sparse_tensors=listing
        ),
        lambda grads: Grads(*(heads_first(grad) for grad in grads[:3])),
    )


# torch's FlexAttention, compiled.


def _flex(work: Lists, backend: str | None) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    # Every number of tokens is compiled anew; without a graph it would hold all scores at once.
    torch._dynamo.config.recompile_limit = 64
    compiled = torch.compile(flex_attention, dynamic=False)
    counts, lists = _counts_of(work.lists)[None], _padded(work.lists)[None]
    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        torch.zeros_like(lists),
        counts,
        lists,
        BLOCK_SIZE=(TILE_SLOTS, TILE_SLOTS),
        mask_mod=_seen,
    )
    options = {} if backend is None else {"kernel_options": {"BACKEND": backend}}
    return lambda q, k, v: compiled(q, k, v, block_mask=mask, **options)  # pyright: ignore


def _seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Of partial blocks, of which there are none. With a mask that is always true FLASH would leave
    out the lists: then it is dense, and wrong here."""
    return query >= 0


def flex_forward(work: Lists, *, backend: str | None) -> Timed:
    call, tensors = _flex(work, backend), batched(work)
    return Timed(lambda: call(*tensors), lambda out: out[0])


def flex_backward(work: Lists, *, backend: str | None) -> Timed:
    return _autograd(work, _flex(work, backend))


# cuDNN's block-sparse attention, from its frontend package.


def _blocks(work: Lists, side: int) -> dict[str, Any]:
    lists = work.lists if side == TILE_SLOTS else work.halves
    return {
        "q2k_block_index": lists[None].contiguous(),
        "q2k_block_nums": _counts_of(lists)[None],
        "sparse_block_size": side,
    }


def block_sparse_forward(work: Lists, *, side: int) -> Timed:
    call = import_module("cudnn.block_sparse_attention").block_sparse_attention_forward
    tensors, blocks = batched(work), _blocks(work, side)
    return Timed(lambda: call(*tensors, **blocks), lambda found: found["o_tensor"][0])


def block_sparse_backward(work: Lists, *, side: int) -> Timed:
    package = import_module("cudnn.block_sparse_attention")
    tensors, blocks = batched(work), _blocks(work, side)
    found = package.block_sparse_attention_forward(*tensors, **blocks)
    given = (work.grad_out[None], *tensors, found["o_tensor"], found["lse_tensor"])
    return Timed(
        lambda: package.block_sparse_attention_backward(*given, **blocks),
        lambda grads: Grads(*(grads[f"d{name}_tensor"][0] for name in "qkv")),
    )


# FastVideo's VSA in Triton, whose blocks have 64 tokens.


def _vsa(work: Lists) -> Callable[..., Tensor]:
    call = import_module("fastvideo_kernel.block_sparse_attn").block_sparse_attn_triton
    lists = work.halves
    sizes = torch.full((lists.shape[1],), 64, dtype=torch.int32, device=lists.device)
    index, counts = lists[None].contiguous(), _counts_of(lists)[None]
    return lambda q, k, v: call(q, k, v, index, counts, sizes)[0]


def vsa_forward(work: Lists) -> Timed:
    call, tensors = _vsa(work), batched(work)
    return Timed(lambda: call(*tensors), lambda out: out[0])


def vsa_backward(work: Lists) -> Timed:
    return _autograd(work, _vsa(work))


# NATTEN, on (1, time, height, width, H, D).


def _natten(work: Lists) -> tuple[Callable[..., Tensor], list[Tensor]]:
    call, window = import_module("natten").na3d, work.window
    assert window is not None
    tensors = [
        work.raster(x).unflatten(1, work.grid.shape) for x in (work.query, work.key, work.value)
    ]
    return lambda q, k, v: call(q, k, v, kernel_size=window.size, stride=window.stride), tensors


def natten_forward(work: Lists) -> Timed:
    call, tensors = _natten(work)
    return Timed(lambda: call(*tensors), lambda out: work.tiled(out.flatten(1, 3)))


def natten_backward(work: Lists) -> Timed:
    call, tensors = _natten(work)
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, grad_out = call(*leaves), work.raster(work.grad_out).unflatten(1, work.grid.shape)
    return Timed(
        lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True),
        lambda grads: Grads(*(work.tiled(grad.flatten(1, 3)) for grad in grads)),
    )

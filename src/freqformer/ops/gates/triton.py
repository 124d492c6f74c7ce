"""The gated sum in one Triton launch, and its gradients in another: the host side.

Shape legend: B batch, N tokens, H heads, D head_dim, a power of two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freqformer.ops.gates.triton_kernel import add_branches, add_branches_backward

BLOCK = 8192
"""Channels of a program."""


def gated_sum(own: Tensor, low: Tensor, gates: Tensor | None, weights: Tensor | None) -> Tensor:
    """As `reference.gated_sum`, computed in float32 and rounded once."""
    return torch.ops.freqformer.gated_sum(own, low, gates, weights)


@torch.library.custom_op(
    "freqformer::gated_sum",
    mutates_args=(),
    schema="(Tensor own, Tensor low, Tensor? gates, Tensor? weights) -> Tensor",
)
def _gated_sum(own: Tensor, low: Tensor, gates: Tensor | None, weights: Tensor | None) -> Tensor:
    own, low, gates, weights = _contiguous(own, low, gates, weights)
    out = torch.empty_like(own)
    launch, options = _launch(own)
    add_branches[launch](own, low, gates, weights, out, **options)
    return out


@_gated_sum.register_fake
def _(own, low, gates, weights):
    return own.new_empty(own.shape)


@torch.library.custom_op(
    "freqformer::gated_sum_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad_out, Tensor own, Tensor low, Tensor? gates, Tensor? weights) -> "
        "(Tensor, Tensor, Tensor)"
    ),
)
def _gated_sum_backward(
    grad_out: Tensor, own: Tensor, low: Tensor, gates: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of own, of low and of every token's gates, the last float32 (B, N, 2, H)."""
    own, low, gates, weights = _contiguous(own, low, gates, weights)
    grads = (torch.empty_like(own), torch.empty_like(low), _empty_gates(own))
    launch, options = _launch(own)
    add_branches_backward[launch](grad_out.contiguous(), own, low, gates, weights, grads, **options)
    return grads


@_gated_sum_backward.register_fake
def _(grad_out, own, low, gates, weights):
    return own.new_empty(own.shape), low.new_empty(low.shape), _empty_gates(own)


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    own, low, gates, weights = ctx.saved_tensors
    own_grad, low_grad, gates_grad = torch.ops.freqformer.gated_sum_backward(
        grad_out, own, low, gates, weights
    )
    weights_grad = None if weights is None else gates_grad.sum(1).to(weights.dtype)
    return own_grad, low_grad, None if gates is None else gates_grad.to(gates.dtype), weights_grad


_gated_sum.register_autograd(_backward, setup_context=_setup)


def _contiguous(own: Tensor, low: Tensor, *gates: Tensor | None) -> tuple[Any, ...]:
    return (
        own.contiguous(),
        low.contiguous(),
        *(None if x is None else x.contiguous() for x in gates),
    )


def _empty_gates(own: Tensor) -> Tensor:
    batch, tokens, heads, _ = own.shape
    return own.new_empty(batch, tokens, 2, heads, dtype=torch.float32)


def _launch(own: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    """The launch, blocks of rows by samples, and what both kernels take beside tensors."""
    batch, tokens, heads, head_dim = own.shape
    block = max(BLOCK // head_dim, 1)
    launch = (-(-tokens * heads // block), batch)
    return launch, {"tokens": tokens, "heads": heads, "BLOCK": block, "D": head_dim, "num_warps": 8}

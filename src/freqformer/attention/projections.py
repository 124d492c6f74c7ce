"""Linear layers of the same tokens, whose gradients of those are summed where they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def project_all(hidden_states: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """The outputs of several layers, each (B, N, its channels), of tokens (B, N, C).

    Each layer gives a gradient of the tokens. Autograd adds them up one by one, which reads two
    whole tensors and writes a third each time; here every product but the first adds to the one
    before it. Layers that are more than a plain linear one, with adapters or hooks, are called as
    they are, and so are all where `torch.compile` traces, which joins sums and products itself.
    """
    summed = hidden_states.requires_grad and torch.is_grad_enabled()
    if not summed or torch.compiler.is_compiling() or not all(map(is_plain, layers)):
        return tuple(layer(hidden_states) for layer in layers)
    given = (x for layer in layers for x in (layer.weight, layer.bias))
    return _Linears.apply(*as_autocast([hidden_states, *given]))


def as_autocast(tensors: Sequence[Any]) -> list[Any]:
    """These, None among them, as autocast would give them to a linear layer."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [None if x is None else x.to(dtype) for x in tensors]


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer's call is its product and nothing else."""
    hooks = (layer._forward_pre_hooks, layer._forward_hooks)
    backward_hooks = (layer._backward_pre_hooks, layer._backward_hooks)
    return type(layer) is nn.Linear and not any((*hooks, *backward_hooks))


class _Linears(torch.autograd.Function):
    """`torch.nn.functional.linear` of the same tokens by each of several weights and biases."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, *given: Any) -> tuple[Tensor, ...]:
        """given: weight and bias of each layer, (O, C) and (O,) or None."""
        weights = given[::2]
        biases = given[1::2]
        # A layer that nothing is made of gives no gradient, and not one of zeros.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_states, *weights)
        ctx.biased = [bias is not None for bias in biases]
        outputs = zip(weights, biases, strict=True)
        return tuple(nn.functional.linear(hidden_states, *layer) for layer in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_states, *weights = ctx.saved_tensors
        tokens = hidden_states.flatten(0, -2)
        total = None
        learned: list[Tensor | None] = []
        for number, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
            if grad is None:
                learned += [None, None]
                continue
            rows = grad.flatten(0, -2)
            # In place: `addmm` would copy the sum first.
            total = rows @ weight if total is None else total.addmm_(rows, weight)
            needs_weight, needs_bias = ctx.needs_input_grad[1 + 2 * number : 3 + 2 * number]
            learned.append(rows.T @ tokens if needs_weight else None)
            learned.append(rows.sum(0) if needs_bias and ctx.biased[number] else None)
        return None if total is None else total.view_as(hidden_states), *learned

"""Our attention launch, by backend, and the operation around it, on the works of `peers.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.config import Band
from freqformer.ops.backends import BACKENDS, Launches
from freqformer.ops.parameters import BranchGates
from peers_layer import LayerQueries
from peers_lists import Lists, own_window_config
from peers_work import Grads, Timed, Work, batched, heads_first, heads_last


def _launches(work: Work, backend: str) -> Launches:
    found = next(one for one in BACKENDS if one.name == backend)
    reason = found.unsupported_reason(batched(work), None)
    if reason is not None:
        raise ValueError(f"impl={backend!r} can't run: {reason}")
    assert found.launches is not None
    return found.launches()


def our_forward(work: Lists | LayerQueries, *, backend: str) -> Timed:
    attend, told = _launches(work, backend).attend, work.arguments
    if isinstance(work, LayerQueries):
        return Timed(lambda: attend(**told), lambda found: work.at_queries(*found[:2]))
    return Timed(lambda: attend(**told), lambda found: heads_first(found.out))


def our_backward(work: Lists | LayerQueries, *, backend: str, deterministic: bool) -> Timed:
    launches, told = _launches(work, backend), work.arguments
    outputs = launches.attend(**told, backward=True)
    told["deterministic"] = deterministic
    if isinstance(work, LayerQueries):
        grads = work.out_grads
        if work.rows.low_branch:
            told |= _gates(work)
    else:
        grads = (heads_last(work.grad_out), torch.zeros_like(outputs.low_out))
    return Timed(
        lambda: launches.attend_backward(grads, outputs, **told),
        lambda found: Grads(found.query, found.key, found.value),
    )


def _gates(work: LayerQueries) -> dict[str, Any]:
    """Gates of zero, which leave the own band as it is and cost what others do."""
    grid, heads = work.plan.layout.grid, work.plan.num_heads
    by_token = work.query.new_zeros(1, grid.num_tokens, 2, heads)
    gates = BranchGates(by_token=by_token, by_sample=work.query.new_zeros(1, 2, heads))
    return {"low_branch": gates, "gate_grads": torch.zeros_like(by_token, dtype=torch.float32)}


def _operation(work: Lists, backend: str) -> Callable[..., Tensor]:
    assert work.window is not None
    told: dict[str, Any] = {
        "grid": work.grid,
        "allocation": [Band.HIGH.value] * len(work.lists),
        "config": own_window_config(work.tile, work.window),
        "impl": backend,
    }
    return lambda q, k, v: frequency_attention(q, k, v, **told)


def operation_forward(work: Lists, *, backend: str) -> Timed:
    call = _operation(work, backend)
    tensors = [work.raster(x) for x in (work.query, work.key, work.value)]
    return Timed(lambda: call(*tensors), work.tiled)


def operation_backward(work: Lists, *, backend: str) -> Timed:
    call = _operation(work, backend)
    leaves = [work.raster(x).requires_grad_() for x in (work.query, work.key, work.value)]
    out, grad_out = call(*leaves), work.raster(work.grad_out)
    return Timed(
        lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True),
        lambda grads: Grads(*(work.tiled(grad) for grad in grads)),
    )

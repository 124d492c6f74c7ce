"""What `layers.py` times: whole attention layers with projections, and the operation in them.

Runs with today's code and with that of an earlier commit, whose names it knows too. Weights and
inputs are drawn by name, so both sides compute the same. Shape legend: B batch, N video tokens, H
heads, D head_dim.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from freqformer.attention import FreqAttention, frequency_attention
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid, tile_layout
from freqformer.ops import parameters as operation_parameters
from freqformer.ops.parameters import AttentionParameters
from freqformer.routing import RoutingTable, even_allocation

WHOLE_RECORD = "routing" in {entry.name for entry in fields(FreqFormerConfig)}
"""Whether the record holds routing, allocation, prior and low branch, as it does today."""
TIMESTEP = 0.5


def impl_of(device: str) -> Any:
    """What is timed: on a GPU what a user gets; on a CPU, a try, the fused plan."""
    return "auto" if device == "cuda" else "triton"


def backend_of(size: Size, device: str, dtype: torch.dtype) -> str:
    """The name of the backend that rows of bands run."""
    if not WHOLE_RECORD:
        return "triton"  # the only fused one then
    from freqformer.ops.backends import resolve

    one = torch.zeros(1, 1, 1, size.head_dim, device=device, dtype=dtype)
    return resolve(impl_of(device), (one, one, one)).name


@dataclass(frozen=True)
class Row:
    """A configuration of a layer in today's words."""

    routing: str = "soft"
    allocation: str = "high"
    low_branch: bool = True
    prior: str = "none"
    config: dict[str, Any] = field(default_factory=lambda: {"summary_tokens": 0})
    dense: bool = False
    frozen: bool = False
    """Whether a table of one bucket, all HIGH, stands for the router."""


WINDOWS = Row(routing="fixed", low_branch=False)
ROWS = {
    "default": Row(),
    "windows": WINDOWS,
    "thirds": Row(routing="fixed", allocation="thirds", low_branch=False),
    "paper": Row("hard", "thirds", False, "noise_level", {"summary_tokens": 256}),
    "dense": Row(routing="fixed", low_branch=False, dense=True),
    "timestep": Row(routing="timestep"),
    "fixed gates": Row(routing="fixed"),
    "frozen": Row("hard", frozen=True),
}
"""The default; its windows only, without router and LOW branch; a third of the heads in each band;
the source's method; exact attention; and the default with a router that reads the timestep only,
with none, and with one that chose, frozen into a table."""
EARLIER_WORDS = {"timestep": "timed", "hard": "learned", "noise_level": "paper"}


def drawn(name: str, *shape: int, device: str) -> Tensor:
    """Standard normal float32 values, the same for the same name."""
    draw = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.randn(*shape, generator=draw, device=device)


@lru_cache
def _leaf(name: str, shape: tuple[int, ...], device: str, dtype: torch.dtype) -> Tensor:
    """An input that all rows of a size share, and that gradients are asked of."""
    return drawn(name, *shape, device=device).to(dtype).requires_grad_()


def forget_inputs() -> None:
    """Give the inputs of a size back."""
    _leaf.cache_clear()


def record_of(row: Row) -> FreqFormerConfig:
    """The row's record."""
    if not WHOLE_RECORD:
        return FreqFormerConfig(**row.config)
    told: dict[str, Any] = {
        "routing": row.routing,
        "allocation": row.allocation,
        "low_branch": row.low_branch,
        "prior": row.prior,
    }
    made = FreqFormerConfig(**row.config, **told)
    if row == ROWS["default"] and made != FreqFormerConfig():
        raise SystemExit(f"the first row is {made}, and the default {FreqFormerConfig()}")
    return made


def _layer_of(row: Row, dim: int, heads: int) -> Any:
    if WHOLE_RECORD:
        if row.dense:
            from freqformer.attention import DenseAttention

            return DenseAttention(dim, heads)
        return FreqAttention(dim, heads, record_of(row))
    earlier: Any = FreqAttention
    config = record_of(row)
    if row.dense:
        return earlier(dim, heads, config, attention="dense")
    options: Any = {
        "routing": EARLIER_WORDS.get(row.routing, row.routing),
        "allocation": _bands(row, heads),
    }
    if row.routing == "hard":
        options["prior"] = EARLIER_WORDS.get(row.prior, row.prior)
    if row.routing in ("fixed", "hard"):
        options["low_beside"] = row.low_branch
    return earlier(dim, heads, config, **options)


def _bands(row: Row, heads: int) -> list[int]:
    if row.dense:
        return [Band.DENSE.value] * heads
    return [Band.HIGH.value] * heads if row.allocation == "high" else even_allocation(heads)


@dataclass(frozen=True)
class Size:
    """A grid of tokens and the heads of a layer over it."""

    grid: Grid
    heads: int
    head_dim: int = 128

    @property
    def dim(self) -> int:
        """Channels."""
        return self.heads * self.head_dim


@dataclass(frozen=True, eq=False)
class Timed:
    """A call to be timed: its output, and what gradients are asked of."""

    call: Callable[[], Tensor]
    leaves: list[Tensor]
    project: Callable[[], object] | None = None
    """The projections among it, without the rest; None where it has none."""

    def forward(self) -> Tensor:
        """The output, no gradients to be asked for."""
        with torch.no_grad():
            return self.call()

    def backward(self, grad_out: Tensor) -> Tensor:
        """Forward and backward; the gradient of the first leaf."""
        out = self.call()
        grad, *_ = torch.autograd.grad(
            out, self.leaves, grad_out.view(out.shape), allow_unused=True
        )
        return grad


def make_layer(name: str, size: Size, device: str, dtype: torch.dtype) -> Timed:
    """The whole layer of a row: projections, router, attention, output projection."""
    row = ROWS[name]
    with torch.device(device):
        layer = _layer_of(row, size.dim, size.heads)
    layer.to(dtype)
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            parameter.copy_(_weight(key, tuple(parameter.shape), device))
    if not row.dense:
        layer.set_impl(impl_of(device))
    if row.frozen:
        layer.set_routing_table(_table(row, size))
    hidden = _leaf("hidden", (1, size.grid.num_tokens, size.dim), device, dtype)
    timestep, rotary = torch.tensor([TIMESTEP], device=device), _rotary(size, device)

    def call() -> Tensor:
        with _cudnn(row, device):
            return layer(hidden, size.grid, timestep, rotary, token_order="raster")

    linears = [module for module in layer.children() if isinstance(module, nn.Linear)]
    return Timed(
        call, [hidden, *layer.parameters()], lambda: [linear(hidden) for linear in linears]
    )


def _table(row: Row, size: Size) -> RoutingTable:
    config = replace(record_of(row), tile=tile_layout(size.grid).tile)
    bands = torch.tensor(_bands(row, size.heads))[None, None]
    tiles = torch.full_like(bands, config.mid_tiles or 0)
    return RoutingTable(bands, tiles, config)


def _cudnn(row: Row, device: str) -> Any:
    return (
        sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
        if row.dense and device == "cuda"
        else (nullcontext())
    )


def _weight(name: str, shape: tuple[int, ...], device: str) -> Tensor:
    """A parameter about as large as in a trained layer."""
    draw = drawn(name, *shape, device=device)
    last = name.rsplit(".", maxsplit=1)[-1]
    if last in ("query_norm", "key_norm", "gains"):
        return 1 + 0.1 * draw
    return draw / math.sqrt(shape[-1]) if last == "weight" else 0.1 * draw


def _rotary(size: Size, device: str) -> tuple[Tensor, Tensor]:
    angle = 3 * drawn("angle", size.grid.num_tokens, size.head_dim // 2, device=device)
    return angle.cos(), angle.sin()


def make_operation(name: str, size: Size, device: str, dtype: torch.dtype) -> Timed:
    """What a row's layer computes between its projections: norm, rotary embedding, attention and
    the gated LOW branch; of queries, keys, values and gates that are given."""
    row, shape = ROWS[name], (1, size.grid.num_tokens, size.heads, size.head_dim)
    tensors = [_leaf(key, shape, device, dtype) for key in ("query", "key", "value")]
    if row.dense:
        return _dense_operation(row, tensors, device)
    norms = [_weight(key, (size.head_dim,), device) for key in ("query_norm", "key_norm")]
    gates = [
        drawn("by_token", 1, size.grid.num_tokens, 2, size.heads, device=device).to(dtype) * 0.1,
        drawn("by_sample", 1, 2, size.heads, device=device) * 0.1,
    ]
    leaves = [*tensors, *norms, *(gates if row.low_branch else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    query_norm, key_norm = norms
    call: dict[str, Any] = {
        "grid": size.grid,
        "config": record_of(row),
        "allocation": _bands(row, size.heads),
        "parameters": AttentionParameters(
            rotary=_rotary(size, device), query_norm=query_norm, key_norm=key_norm
        ),
        "token_order": "raster",
        "impl": impl_of(device),
    }
    query, key, value = tensors
    if not row.low_branch:
        return Timed(lambda: frequency_attention(query, key, value, **call), leaves)
    by_token, by_sample = gates
    return Timed(lambda: _with_low((query, key, value), by_token, by_sample, call), leaves)


def _with_low(
    tensors: tuple[Tensor, Tensor, Tensor], by_token: Tensor, by_sample: Tensor, call: Any
) -> Tensor:
    if hasattr(operation_parameters, "BranchGates"):
        gates = operation_parameters.BranchGates(by_token=by_token, by_sample=by_sample)
        return frequency_attention(*tensors, low_branch=gates, **call)
    from freqformer.ops.gates.api import gated_sum  # pyright: ignore  # of the earlier commit

    own = frequency_attention(*tensors, **call)
    bands = [Band.LOW.value] * own.shape[2]
    low = frequency_attention(*tensors, **{**call, "allocation": bands})
    return gated_sum(own, low, by_token, by_sample, fused=True)


def _dense_operation(row: Row, tensors: list[Tensor], device: str) -> Timed:
    """torch's own attention in the layout that it likes best, without norm and rotary embedding."""
    leaves = [x.transpose(1, 2).contiguous().requires_grad_() for x in tensors]
    query, key, value = leaves

    def call() -> Tensor:
        with _cudnn(row, device):
            return functional.scaled_dot_product_attention(query, key, value)

    return Timed(call, leaves)


KINDS = {"layer": make_layer, "operation": make_operation}

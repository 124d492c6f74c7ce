"""A small call of the operation against float64, forward and backward, and its speed.

Shape legend: B batch (1), N video tokens, H heads, D head_dim.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.config import Band, FreqFormerConfig
from freqformer.cost import Call
from freqformer.doctor.limits import Error, allowed_error
from freqformer.grid import Grid
from freqformer.ops.backends import ImplChoice, resolve
from freqformer.ops.block_sparse.eager import rounded_weights
from freqformer.ops.cost import backward_costs, forward_costs
from freqformer.ops.parameters import BranchGates
from freqformer.plan import build_plan

GRID = Grid(4, 8, 64)
"""Of the call that is checked: 16 tiles, of which a query sees 6, and float64's full masks of it
fit anywhere."""
GPU_GRID = Grid(16, 64, 64)
"""Of the call that is timed on a GPU; on a CPU it is the one that is checked."""
GPU_BYTES = 8 << 30
"""Free memory that it is timed in; with less the call that is checked is."""
TIMED_SECONDS = 1.0
"""That calls of one direction are repeated for, about."""
MOST_CALLS = 20
GRADIENTS = ("grad_query", "grad_key", "grad_value")


@dataclass(frozen=True)
class Compared:
    """One result of the call beside float64."""

    name: str
    """`out`, or a gradient."""
    error: Error
    peer: Error
    """Of eager attention in the same dtype."""
    allowed: Error

    @property
    def good(self) -> bool:
        return self.error.within(self.allowed)


@dataclass(frozen=True)
class Speed:
    """How fast a call of the default is."""

    grid: tuple[int, int, int]
    tokens: int
    heads: int
    head_dim: int
    forward_ms: float
    backward_ms: float
    """Of the backward alone."""
    forward_tflops: float
    """Useful TFLOP/s of the attention: products of tokens that a query sees."""
    backward_tflops: float


@dataclass(frozen=True)
class Check:
    """What `run_check` found."""

    device: str
    dtype: str
    impl: str
    """The backend that ran."""
    first_seconds: float
    """Of the first call with gradients: kernels are compiled in it, once."""
    results: tuple[Compared, ...]
    speed: Speed

    @property
    def good(self) -> bool:
        return all(result.good for result in self.results)


@dataclass(frozen=True)
class _Inputs:
    """Query, key, value, gates of the LOW branch and the output's gradient, (1, N, H, D)."""

    grid: Grid
    qkv: tuple[Tensor, Tensor, Tensor]
    gates: Tensor
    """(1, N, 2, H)."""
    grad_out: Tensor

    def to(self, dtype: torch.dtype) -> _Inputs:
        query, key, value = (x.to(dtype) for x in self.qkv)
        return _Inputs(
            self.grid, (query, key, value), self.gates.to(dtype), self.grad_out.to(dtype)
        )


def run_check(device: torch.device, impl: ImplChoice = "auto") -> Check:
    """Compute a call of the default configuration with a LOW branch, forward and backward, compare
    it with the float64 reference, and time it: some seconds after kernels are compiled.

    bfloat16 and head_dim 128 on a GPU, float32 and head_dim 64 on a CPU.

    Args:
        device: a CPU or a GPU.
        impl: the backend.

    Raises:
        ValueError: for a backend that can't run there.
    """
    gpu = device.type != "cpu"
    dtype = torch.bfloat16 if gpu else torch.float32
    inputs = _inputs(GRID, heads=4 if gpu else 2, head_dim=128 if gpu else 64, device=device)
    inputs = inputs.to(dtype)
    begun = time.perf_counter()
    actual = _results(inputs, impl)
    _wait(device)
    first_seconds = time.perf_counter() - begun
    # The yardstick: plain PyTorch, with factors rounded as matrix units take them.
    with nullcontext() if dtype == torch.float32 else rounded_weights(dtype):
        peer = _results(inputs, "eager")
    exact = _results(inputs.to(torch.float64), "reference")
    return Check(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        dtype=str(dtype).removeprefix("torch."),
        impl=resolve(impl, inputs.qkv).name,
        first_seconds=first_seconds,
        results=tuple(
            _compare(name, actual[name], peer[name], wanted) for name, wanted in exact.items()
        ),
        speed=_speed(inputs if not gpu else _timed_inputs(device, inputs), impl),
    )


def _inputs(grid: Grid, *, heads: int, head_dim: int, device: torch.device) -> _Inputs:
    """Random inputs at unit scale, the same at every run."""
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, grid.num_tokens, *shape, generator=draw, device=device)

    query, key, value, grad_out = (normal(heads, head_dim) for _ in range(4))
    return _Inputs(grid, (query, key, value), normal(2, heads), grad_out)


def _timed_inputs(device: torch.device, checked: _Inputs) -> _Inputs:
    """Inputs of a size that fills a GPU, where its memory has room."""
    free, _ = torch.cuda.mem_get_info(device)
    if free < GPU_BYTES:
        return checked
    return _inputs(GPU_GRID, heads=8, head_dim=128, device=device).to(torch.bfloat16)


def _attend(inputs: _Inputs, impl: ImplChoice) -> Tensor:
    return frequency_attention(
        *inputs.qkv,
        grid=inputs.grid,
        low_branch=BranchGates(by_token=inputs.gates),
        impl=impl,
    )


def _results(inputs: _Inputs, impl: ImplChoice) -> dict[str, Tensor]:
    """The output, and gradients of query, key and value, by name."""
    query, key, value = leaves = [x.detach().requires_grad_() for x in inputs.qkv]
    out = _attend(_Inputs(inputs.grid, (query, key, value), inputs.gates, inputs.grad_out), impl)
    grads = torch.autograd.grad(out, leaves, inputs.grad_out)
    return {"out": out.detach(), **dict(zip(GRADIENTS, grads, strict=True))}


def _compare(name: str, actual: Tensor, peer: Tensor, exact: Tensor) -> Compared:
    beside = Error.of(peer, exact)
    return Compared(
        name=name,
        error=Error.of(actual, exact),
        peer=beside,
        allowed=allowed_error(name, beside, exact, actual.dtype),
    )


def _speed(inputs: _Inputs, impl: ImplChoice) -> Speed:
    query, key, value = leaves = [x.detach().requires_grad_() for x in inputs.qkv]
    given = _Inputs(inputs.grid, (query, key, value), inputs.gates, inputs.grad_out)
    out = _attend(given, impl)

    def forward() -> None:
        with torch.no_grad():
            _attend(inputs, impl)

    def backward() -> None:
        torch.autograd.grad(out, leaves, inputs.grad_out, retain_graph=True)

    forward_ms = _best_ms(forward, query.device)
    backward_ms = _best_ms(backward, query.device)
    _, tokens, heads, head_dim = query.shape
    plan = build_plan(inputs.grid, FreqFormerConfig(), num_heads=heads, head_dim=head_dim)
    call = Call(plan, {Band.HIGH: heads}, query.element_size(), low_branch=True)
    return Speed(
        grid=inputs.grid.shape,
        tokens=tokens,
        heads=heads,
        head_dim=head_dim,
        forward_ms=forward_ms,
        backward_ms=backward_ms,
        forward_tflops=forward_costs(call)["attention"].flops / forward_ms / 1e9,
        backward_tflops=backward_costs(call)["attention"].flops / backward_ms / 1e9,
    )


def _best_ms(call: Callable[[], None], device: torch.device) -> float:
    """The shortest time of some calls after one that isn't counted, in ms."""
    call()
    _wait(device)
    times: list[float] = []
    while len(times) < MOST_CALLS and sum(times) < TIMED_SECONDS:
        begun = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - begun)
    return 1e3 * min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Gradients of the fused attention launch by full masks, for the cases of `attend_cases`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from tests.support.attend_cases import AttendCase, _bias, _segments, expected, queries_of
from tests.support.numerics import Pool, check_errors
from torch import Tensor

from freqformer.ops.backends import launches_of
from freqformer.ops.block_sparse.records import AttentionOutputs
from freqformer.ops.parameters import BranchGates

LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class AttendGrads:
    """Gradients, NaN in places that hold nothing a row of its band reads."""

    query: Tensor
    key: Tensor
    value: Tensor
    summary_offsets: Tensor | None
    """(R, 3), or what each query adds to it, (R, 3, N + X)."""


def random_output_grads(case: AttendCase, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unscaled gradients of out and low_out, NaN where `attend` writes nothing."""
    out, low_out, _ = expected(case)
    draw = torch.Generator(out.device).manual_seed(seed)
    noise = (torch.randn(x.shape, generator=draw, device=x.device) for x in (out, low_out))
    grad_out, grad_low_out = (
        grad.masked_fill(x.isnan(), torch.nan).to(case.buffers.query.dtype)
        for grad, x in zip(noise, (out, low_out), strict=True)
    )
    return grad_out, grad_low_out


def exact_outputs(case: AttendCase) -> AttentionOutputs:
    """What `attend` gives with `backward`, to the last bit; NaN where nothing is written."""
    dtype = case.buffers.query.dtype
    out, low_out, lse = expected(case)
    rounded, low_rounded = out.to(dtype), low_out.to(dtype)
    if dtype == torch.float32:
        high = (lse * LOG2_E).floor().float()  # any number near serves; weights need both
        residual = torch.stack([high, (high - lse * LOG2_E).exp2().float()], -1)
    else:
        residual = _by_row(case, out - rounded.double(), low_out - low_rounded.double()).to(dtype)
    return AttentionOutputs(rounded, low_rounded, lse.float(), residual)


def expected_grads(
    case: AttendCase, grads: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float64
) -> AttendGrads:
    """Gradients of `attend`, in float64; those of the offsets query by query.

    With a narrower `dtype`: the same in float32 with weights, slopes and results rounded to it, as
    any kernel on matrix units must, so that its error is the yardstick.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    plan, buffers, layout = case.plan, case.buffers, case.tables.keys
    head_dim = plan.head_dim
    given = _by_row(case, *(x.to(wide) for x in grads))
    inputs = [x[..., :head_dim] for x in (buffers.query, buffers.key, buffers.value)]
    total = [torch.full(x.shape, torch.nan, dtype=wide, device=x.device) for x in inputs]
    offsets = torch.zeros(
        len(case.rows.allocation), 3, given.shape[1], dtype=wide, device=given.device
    )
    for row, band in enumerate(case.rows.allocation.tolist()):
        bias = _bias(case, row, band).to(device=given.device, dtype=wide)
        queries = queries_of(case, band).to(given.device)
        keys = _held(case, band).to(given.device)
        query, key, value = (
            x[row, own].to(wide) for x, own in zip(inputs, (queries, keys, keys), strict=True)
        )
        grad = given[row, queries]
        logits = query @ key.T * head_dim**-0.5 + bias[queries][:, keys]
        weight = logits.softmax(-1).nan_to_num(0.0)
        rounded, agree = weight.to(dtype).to(wide), grad @ value.T
        slope = weight * (agree - (rounded * agree).sum(-1, keepdim=True))
        for start, index in (
            (layout.low_summaries, 0),
            (layout.mid_summaries, 1),
            (layout.high_summaries, 2),
        ):
            own = (keys >= start) & (keys < start + plan.cells.num_cells) & (start >= 0)
            offsets[row, index, queries] = slope[:, own].sum(1)
        slope = slope.to(dtype).to(wide)
        total[0][row, queries] = slope @ key * head_dim**-0.5
        total[1][row, keys] = slope.T @ query * head_dim**-0.5
        total[2][row, keys] = rounded.T @ grad
    query, key, value = (x.to(dtype) for x in total)
    return AttendGrads(query, key, value, None if case.summary_offsets is None else offsets)


def check_grads(
    case: AttendCase,
    told: Any = None,
    pool: Pool | None = None,
    *,
    outliers: bool = False,
    own_forward: bool = False,
    impl: str = "triton",
) -> None:
    """Raise AssertionError unless `attend_backward` is as near float64 as a peer in the same dtype.

    `own_forward` takes what the kernels' forward gave in place of the exact outputs: on a GPU both
    round scores alike, and gradients of scores in the hundreds need them to agree.
    """
    grads = random_output_grads(case)
    exact, peer = expected_grads(case, grads), expected_grads(case, grads, case.buffers.query.dtype)
    exact, peer = summed(exact, exact), summed(peer, exact)
    actual, beside, wanted = (
        named(x, exact) for x in (kernel_grads(case, grads, own_forward, impl), peer, exact)
    )
    # A query of one key has no gradient, but the two terms of its slope are sums in different
    # orders; an offset's gradient adds up one such difference per query.
    eps, (rows, queries, head_dim) = (
        torch.finfo(case.buffers.query.dtype).eps,
        case.buffers.query.shape,
    )
    least = {"grad_summary_offsets": eps * math.sqrt(rows * queries * head_dim)}
    for name in [
        name for name, x in wanted.items() if not (x.abs() > 0.01 * least.get(name, 1e-8)).any()
    ]:
        assert actual[name].abs().mean() <= least.get(name, eps), (name, told)
        del actual[name], beside[name], wanted[name]
    check_errors(actual, beside, wanted, outliers=outliers, case=told)
    if pool is not None:
        pool.add(actual, beside, wanted)


def kernel_grads(
    case: AttendCase,
    grads: tuple[Tensor, Tensor],
    own_forward: bool = False,
    impl: str = "triton",
) -> AttendGrads:
    """The gradients of a backend's kernels, from the exact outputs or from those of its own
    forward."""
    launches = launches_of(impl)
    outputs = (
        launches.attend(**case.arguments, backward=True) if own_forward else exact_outputs(case)
    )
    arguments: dict[str, Any] = case.arguments
    if case.rows.low_branch:
        batch, tokens, heads, _ = grads[0].shape
        video = tokens - case.plan.num_text_tokens
        gates = grads[0].new_zeros(batch, 2, heads)  # gates of zero change no gradient
        own = grads[0].new_empty(batch, video, 2, heads, dtype=torch.float32)
        arguments |= {"low_branch": BranchGates(by_sample=gates), "gate_grads": own}
    got = launches.attend_backward(grads, outputs, **arguments, deterministic=True)
    offsets = None if got.summary_offsets is None else got.summary_offsets.flatten(0, 1)
    real = case.plan.head_dim
    query, key, value = (x[..., :real] for x in (got.query, got.key, got.value))
    return AttendGrads(query, key, value, offsets)


def summed(grads: AttendGrads, exact: AttendGrads) -> AttendGrads:
    """The same with offsets (R, 3), as far from the exact sum as errors of queries add up to when
    they are independent.

    The peer's own sum is one number per row, in which errors may cancel by luck: of 2,080 random
    calls on a GPU one peer's sum was 18 times nearer than ours. Errors of one sign would still
    show, since they grow faster than this.
    """
    if grads.summary_offsets is None or exact.summary_offsets is None:
        return grads
    error = (grads.summary_offsets - exact.summary_offsets).square().sum(-1).sqrt()
    total = exact.summary_offsets.sum(-1) + error
    return replace(grads, summary_offsets=total.to(grads.summary_offsets.dtype))


def named(grads: AttendGrads, exact: AttendGrads) -> dict[str, Tensor]:
    """Every gradient by name, as rows (written, D) where something was to be written."""
    names = ("query", "key", "value", "summary_offsets")
    pairs = {name: (getattr(grads, name), getattr(exact, name)) for name in names}
    return {
        f"grad_{name}": x[~truth[..., 0].isnan()]
        for name, (x, truth) in pairs.items()
        if truth is not None
    }


def _by_row(case: AttendCase, out: Tensor, low_out: Tensor) -> Tensor:
    """out (B, N + X, H, D) and low_out (R, M, D) as the queries lie: (R, N + X + M, D)."""
    plan = case.plan
    rows = out.transpose(1, 2).flatten(0, 1).clone(memory_format=torch.contiguous_format)
    if case.token_order == "raster":
        video = plan.layout.raster_to_tile.to(out.device)
        rows[:, : len(video)] = rows[:, video]
    return torch.cat([rows, low_out], 1)


def _held(case: AttendCase, band: int) -> Tensor:
    """Rows of the key buffer that a row of `band` holds something in, int64."""
    parts = [
        torch.arange(start, start + length)
        for start, length, read in _segments(case.tables, band, case.rows.low_branch)
        if read
    ]
    return torch.cat(parts)

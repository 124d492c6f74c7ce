"""`frequency_attention` of a `CallRecord` as one operation with gradients, for compiled graphs.

Its backward computes the forward pass once more, since what a forward pass keeps has shapes that
follow from the record.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from freqformer.attention.function import frequency_attention
from freqformer.attention.record import RecordedBands, unpacked
from freqformer.ops.backends import ImplChoice
from freqformer.ops.parameters import (
    LEARNED,
    AttentionParameters,
    BranchGates,
    KnownBands,
    Pairs,
    gates_of,
    operands,
    parameters_of,
)


class Inputs(NamedTuple):
    """What the operation takes, in the order of its schema."""

    query: Tensor
    key: Tensor
    value: Tensor
    bands: Tensor
    """Whole numbers (B, H)."""
    record: Tensor
    """Of `record.packed`, on the host."""
    summary_queries: Tensor | None
    summary_offsets: Tensor | None
    gains: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    text_mask: Tensor | None
    by_token: Tensor | None
    by_sample: Tensor | None
    eps: float
    pairs: Pairs
    across_heads: bool
    norm_text: bool
    """As `RotaryEmbedding` and `AttentionParameters` have these three."""
    impl: ImplChoice
    head_parts: int


DIFFERENTIABLE = ("query", "key", "value", *LEARNED, "cos", "sin", "by_token", "by_sample")
"""Inputs that may get a gradient."""
INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor bands, Tensor record, "
    "Tensor? summary_queries, Tensor? summary_offsets, Tensor? gains, Tensor? query_norm, "
    "Tensor? key_norm, Tensor? cos, Tensor? sin, Tensor? text_mask, Tensor? by_token, "
    "Tensor? by_sample, float eps, str pairs, bool across_heads, bool norm_text, str impl, "
    "SymInt head_parts"
)
# A captured launch would replay this record's tiles for every later one: torch.compile leaves what
# has this tag out of the CUDA graphs that it makes.
TAGS = (torch.Tag.cudagraph_unsafe,)
# By the lower interface of torch.library: a custom_op's code runs below autograd, and this backward
# needs it.
_LIBRARY = torch.library.Library("freqformer", "FRAGMENT")
_LIBRARY.define(f"recorded_attention({INPUTS}) -> Tensor", tags=TAGS)
_LIBRARY.define(
    f"recorded_attention_backward(Tensor grad_out, {INPUTS}, bool[] wanted) -> Tensor[]", tags=TAGS
)


def recorded_attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    *,
    allocation: RecordedBands,
    parameters: AttentionParameters | None = None,
    text_mask: Tensor | None = None,
    low_branch: BranchGates | None = None,
    impl: ImplChoice = "auto",
    head_parts: int = 1,
) -> Tensor:
    """`frequency_attention` of a record: in a compiled graph it is an operand, so that one graph
    serves all records. A CUDA graph can't hold it.

    Args:
        qkv: query, key and value.
        parameters, text_mask, low_branch, impl, head_parts: as there.
        allocation: the bands, and all else of the call.

    Returns: (batch, tokens, heads, head_dim).

    Raises:
        ValueError: as there, when a graph runs; and while a CUDA graph is captured.
    """
    query, _, _ = qkv
    inputs = Inputs(
        *qkv,
        bands=allocation.bands.to(query.device),
        record=allocation.record,
        text_mask=text_mask,
        impl=impl,
        head_parts=head_parts,
        **operands(parameters, low_branch),
    )
    return torch.ops.freqformer.recorded_attention(*inputs)


def _attend(inputs: Inputs) -> Tensor:
    if _capturing(inputs.query):
        raise ValueError(
            "record says what a call does, and a CUDA graph that is captured would replay this "
            "one's tiles for every other; none is allowed in a capture: compile with "
            'mode="reduce-overhead", which leaves this operation out, or give all steps and '
            'layers the same, as density_schedule="constant" does'
        )
    record = unpacked(inputs.record)
    return frequency_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        grid=record.grid,
        allocation=KnownBands(inputs.bands, record.present),
        config=record.config,
        num_text_tokens=record.num_text_tokens,
        text_mask=inputs.text_mask,
        parameters=parameters_of(inputs),
        low_branch=gates_of(inputs),
        impl=inputs.impl,
        head_parts=inputs.head_parts,
    )


def _capturing(query: Tensor) -> bool:
    return query.is_cuda and torch.cuda.is_current_stream_capturing()


def _forward(*given: Any) -> Tensor:
    with torch.no_grad():
        # In memory of its own, as what is traced says of it.
        return _attend(Inputs(*given)).contiguous()


def _backward(grad_out: Tensor, *given: Any) -> list[Tensor]:
    """Gradients of `DIFFERENTIABLE`, of those that `wanted`, the last argument, asks for; an empty
    tensor for each other one."""
    *values, wanted = given
    inputs = Inputs(*values)
    asked = [name for name, want in zip(DIFFERENTIABLE, wanted, strict=True) if want]
    with torch.enable_grad():
        own = {name: getattr(inputs, name).detach().requires_grad_() for name in asked}
        out = _attend(inputs._replace(**own))
        found = torch.autograd.grad(out, list(own.values()), grad_out, materialize_grads=True)
    grads = dict(zip(asked, found, strict=True))
    return [
        grads[name].contiguous() if name in grads else grad_out.new_empty(0)
        for name in DIFFERENTIABLE
    ]


def _fake_forward(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape)


def _fake_backward(grad_out: Tensor, *given: Any) -> list[Tensor]:
    *values, wanted = given
    inputs = Inputs(*values)
    asked = zip(DIFFERENTIABLE, wanted, strict=True)
    return [
        (x := getattr(inputs, name)).new_empty(x.shape) if want else grad_out.new_empty(0)
        for name, want in asked
    ]


def _setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    named = Inputs(*inputs)._asdict()
    ctx.tensors = [name for name, x in named.items() if isinstance(x, Tensor)]
    ctx.others = {name: x for name, x in named.items() if not isinstance(x, Tensor)}
    ctx.save_for_backward(*(named[name] for name in ctx.tensors))


def _autograd(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    saved = dict(zip(ctx.tensors, ctx.saved_tensors, strict=True))
    inputs = Inputs(**saved, **ctx.others)
    needed = dict(zip(Inputs._fields, ctx.needs_input_grad, strict=True))
    wanted = [bool(needed[name]) and name in saved for name in DIFFERENTIABLE]
    found = torch.ops.freqformer.recorded_attention_backward(grad_out, *inputs, wanted)
    grads = dict(zip(DIFFERENTIABLE, found, strict=True))
    return tuple(grads[name] if name in grads and needed[name] else None for name in needed)


_LIBRARY.impl("recorded_attention", _forward, "CompositeExplicitAutograd")
_LIBRARY.impl("recorded_attention_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("freqformer::recorded_attention", _fake_forward)
torch.library.register_fake("freqformer::recorded_attention_backward", _fake_backward)
torch.library.register_autograd("freqformer::recorded_attention", _autograd, setup_context=_setup)
